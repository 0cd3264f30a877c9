"""Token labels to entities with exact character offsets: numpy only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mbexport.runtime.heads import FloatArray, scores
from mbexport.runtime.text import Encoded

OUTSIDE = "O"
# B(egin), I(nside); E(nd) or L(ast), S(ingle) or U(nit) in the schemes that have them.
TAGGED = re.compile(r"([BIELSU])[-_](.+)")
OPENING, CLOSING = frozenset("BSU"), frozenset("ELSU")


@dataclass
class _Entity:
    """An entity that is being put together from words."""

    group: str
    start: int
    end: int
    closed: bool
    scores: list[float] = field(default_factory=list)


def entities(logits: FloatArray, encoded: Encoded, text: str, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Entities of one text, in order, none overlapping.

    A word takes the label of its first token, the one that training labels; words of one
    entity are joined as BIO, BIOES or BILOU tags say, or, without tags, while labels are equal.

    Args:
        logits: [tokens, labels].
        encoded: the text's tokens.
        text: the text; for a pair, its first segment.
        labels: by number.

    Returns:
        Per entity ``{"entity_group", "score", "word", "start", "end"}``: the mean of its words'
        scores, the characters text[start:end], blanks at its ends left out.
    """
    probabilities = scores(logits, "softmax")
    found: list[_Entity] = []
    current: _Entity | None = None
    word_before: int | None = None
    for token, word, start, end in encoded.words_of(0):
        if word == word_before:
            if current is not None:
                current.end = end
            continue
        word_before = word
        best = int(probabilities[token].argmax())
        tag, group = _parse(labels[best])
        if group == OUTSIDE:
            current = None
            continue
        if current is None or current.closed or current.group != group or tag in OPENING:
            current = _Entity(group, start, end, closed=False)
            found.append(current)
        current.end = end
        current.closed = tag in CLOSING
        current.scores.append(float(probabilities[token, best]))
    return [_describe(entity, text) for entity in found]


def _parse(label: str) -> tuple[str, str]:
    """``B-PER`` to (B, PER); a label without a tag to ("", label)."""
    match = TAGGED.fullmatch(label)
    return (match[1], match[2]) if match else ("", label)


def _describe(entity: _Entity, text: str) -> dict[str, Any]:
    piece = text[entity.start : entity.end]
    start = entity.start + len(piece) - len(piece.lstrip())
    word = piece.strip()
    return {
        "entity_group": entity.group,
        "score": sum(entity.scores) / len(entity.scores),
        "word": word,
        "start": start,
        "end": start + len(word),
    }
