"""Entities from labels chosen by hand, in every tagging scheme."""

from __future__ import annotations

import numpy as np
import pytest

from mbexport.runtime.entities import entities
from mbexport.runtime.text import TextEncoder
from tests.checkpoints import EXAMPLE

TEXT = "Ann Lee met Bob in New 東京 🎉 Park"
WORDS = TEXT.split()


def found_entities(by_word: list[str]) -> list[tuple[str, str]]:
    """(group, word) of TEXT, a label for each of its words; later tokens of a word are labelled at odds."""
    labels = sorted({*by_word, "B-ODD"})
    encoded = TextEncoder(EXAMPLE / "tokenizer.json", 512).encode([TEXT])[0]
    starts = {TEXT.index(word): label for word, label in zip(WORDS, by_word, strict=True)}
    logits = np.zeros((len(encoded.ids), len(labels)), np.float32)
    seen: set[int] = set()
    for token, _, start, end in encoded.words_of(0):
        first = start + (len(TEXT[start:end]) - len(TEXT[start:end].lstrip()))
        label = starts[first] if first in starts and first not in seen else "B-ODD"
        seen.add(first)
        logits[token, labels.index(label)] = 5.0
    answer = entities(logits, encoded, TEXT, labels)
    for entity in answer:
        assert TEXT[entity["start"] : entity["end"]] == entity["word"]
    return [(entity["entity_group"], entity["word"]) for entity in answer]


SCHEMES = {
    "BIO": ["B-PER", "I-PER", "O", "B-PER", "O", "B-LOC", "I-LOC", "I-LOC", "I-LOC"],
    "BIOES": ["B-PER", "E-PER", "O", "S-PER", "O", "B-LOC", "I-LOC", "I-LOC", "E-LOC"],
    "BILOU": ["B-PER", "L-PER", "O", "U-PER", "O", "B-LOC", "I-LOC", "I-LOC", "L-LOC"],
    "no tags": ["PER", "PER", "O", "PER", "O", "LOC", "LOC", "LOC", "LOC"],
    "I only": ["I-PER", "I-PER", "O", "I-PER", "O", "I-LOC", "I-LOC", "I-LOC", "I-LOC"],
}
EXPECTED = [("PER", "Ann Lee"), ("PER", "Bob"), ("LOC", "New 東京 🎉 Park")]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scheme(scheme: str) -> None:
    assert found_entities(SCHEMES[scheme]) == EXPECTED


def test_b_begins_a_new_entity_beside_one_of_its_kind() -> None:
    labels = ["B-PER", "B-PER", "O", "O", "O", "O", "O", "O", "O"]
    assert found_entities(labels) == [("PER", "Ann"), ("PER", "Lee")]


def test_s_and_e_close_an_entity() -> None:
    labels = ["S-PER", "I-PER", "O", "O", "O", "B-LOC", "E-LOC", "I-LOC", "O"]
    assert found_entities(labels) == [("PER", "Ann"), ("PER", "Lee"), ("LOC", "New 東京"), ("LOC", "🎉")]


def test_another_kind_begins_another_entity() -> None:
    labels = ["B-PER", "I-LOC", "O", "O", "O", "O", "O", "O", "O"]
    assert found_entities(labels) == [("PER", "Ann"), ("LOC", "Lee")]


def test_nothing_found() -> None:
    assert found_entities(["O"] * len(WORDS)) == []
