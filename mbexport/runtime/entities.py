"""Token labels to entities with exact character offsets: numpy only."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mbexport.runtime.heads import FloatArray, scores
from mbexport.runtime.text import Encoded

OUTSIDE = ("O", "o")
# B(egin), I(nside); E(nd) or L(ast), S(ingle) or U(nit) in the schemes that have them.
TAGGED = re.compile(r"([BIELSU])[-_](.+)")
SCHEME = re.compile(r"[BI][-_].+")  # without one of these, labels carry no tags: E-MAIL is a kind
OPENING, CLOSING = frozenset("BSU"), frozenset("ELSU")
# Scripts that put no blanks between words: there, every character begins one.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


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

    A word takes the label of its first token, the one that training labels. Words begin where
    the tokenizer says, at blanks and punctuation (some tokenizers split nowhere), and at each
    character of scripts without blanks. Words of one entity are joined as BIO, BIOES or BILOU tags say,
    or, without tags, while labels are equal.

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
    tagged = any(SCHEME.fullmatch(label) for label in labels)
    found: list[_Entity] = []
    current: _Entity | None = None
    before = _Piece(0, -1, -1, 0)
    for piece in (_Piece(*parts) for parts in encoded.words_of(0)):
        continues, before = _continues(piece, before, text), piece
        if continues:
            if current is not None:
                current.end = piece.end
            continue
        best = int(probabilities[piece.token].argmax())
        tag, group = _parse(labels[best], tagged=tagged)
        if group in OUTSIDE:
            current = None
            continue
        if current is None or current.closed or current.group != group or tag in OPENING:
            current = _Entity(group, piece.start, piece.end, closed=False)
            found.append(current)
        current.end = piece.end
        current.closed = tag in CLOSING
        current.scores.append(float(probabilities[piece.token, best]))
    described = (_describe(entity, text) for entity in found)
    return [entity for entity in described if entity["word"]]


class _Piece(NamedTuple):
    """A token, the tokenizer's number of its word, and the characters it stands for."""

    token: int
    word: int
    start: int
    end: int


def _continues(piece: _Piece, before: _Piece, text: str) -> bool:
    """Whether a token goes on with the word of the one before it."""
    if piece.word != before.word:
        return False
    if piece.start < before.end:  # bytes of one character
        return True
    if not text[before.start : before.end].strip():  # a blank that is a token of its own, at a word's head
        return True
    first, last = text[piece.start], text[piece.start - 1]
    apart = first.isspace() or last.isspace() or _is_punctuation(first) or _is_punctuation(last)
    return not apart and not UNSPACED.match(first)


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character).startswith("P")


def _parse(label: str, *, tagged: bool) -> tuple[str, str]:
    """``B-PER`` to (B, PER); a label without a tag to ("", label)."""
    match = TAGGED.fullmatch(label) if tagged else None
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
