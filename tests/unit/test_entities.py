"""Entities from labels chosen by hand, in every tagging scheme."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, trainers

from mbexport.runtime.entities import entities
from mbexport.runtime.text import TextEncoder
from tests.checkpoints import EXAMPLE

TEXT = "Ann Lee met Bob in New Österreich 🎉 Park"
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
EXPECTED = [("PER", "Ann Lee"), ("PER", "Bob"), ("LOC", "New Österreich 🎉 Park")]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scheme(scheme: str) -> None:
    assert found_entities(SCHEMES[scheme]) == EXPECTED


def test_b_begins_a_new_entity_beside_one_of_its_kind() -> None:
    labels = ["B-PER", "B-PER", "O", "O", "O", "O", "O", "O", "O"]
    assert found_entities(labels) == [("PER", "Ann"), ("PER", "Lee")]


def test_s_and_e_close_an_entity() -> None:
    labels = ["S-PER", "I-PER", "O", "O", "O", "B-LOC", "E-LOC", "I-LOC", "O"]
    assert found_entities(labels) == [("PER", "Ann"), ("PER", "Lee"), ("LOC", "New Österreich"), ("LOC", "🎉")]


def test_another_kind_begins_another_entity() -> None:
    labels = ["B-PER", "I-LOC", "O", "O", "O", "O", "O", "O", "O"]
    assert found_entities(labels) == [("PER", "Ann"), ("LOC", "Lee")]


def test_nothing_found() -> None:
    assert found_entities(["O"] * len(WORDS)) == []


def one_label_a_token(text: str, by_start: dict[int, str], labels: list[str], tokenizer: Tokenizer) -> list[str]:
    """The words of the entities, when the token at each character has the label given for it, else O."""
    path = Path(tempfile.mkdtemp()) / "tokenizer.json"
    tokenizer.save(str(path))
    encoded = TextEncoder(path, 512).encode([text])[0]
    logits = np.zeros((len(encoded.ids), len(labels)), np.float32)
    for token, _, start, end in encoded.words_of(0):
        first = start + len(text[start:end]) - len(text[start:end].lstrip())
        logits[token, labels.index(by_start.get(first, "O"))] = 5.0
    return [entity["word"] for entity in entities(logits, encoded, text, labels)]


def tokenizer_without_words() -> Tokenizer:
    """No pre-tokenizer, as converted SentencePiece tokenizers of the Llama kind: one word for all."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    texts = ["Ann lives in Paris, with Bob"] * 20
    tokenizer.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=40, show_progress=False))
    return tokenizer


def test_words_of_a_tokenizer_that_splits_none() -> None:
    text = "Ann lives in Paris, with Bob"
    labels = {0: "B-PER", text.index("Paris"): "B-LOC", text.index("Bob"): "B-PER"}
    found = one_label_a_token(text, labels, ["O", "B-PER", "I-PER", "B-LOC"], tokenizer_without_words())
    assert found == ["Ann", "Paris", "Bob"]


def test_scripts_without_blanks() -> None:
    text = "昨日東京で会った"
    tokenizer = Tokenizer.from_file(str(EXAMPLE / "tokenizer.json"))
    assert one_label_a_token(text, {2: "B-LOC", 3: "I-LOC"}, ["O", "B-LOC", "I-LOC"], tokenizer) == ["東京"]


def test_labels_that_only_look_tagged() -> None:
    text = "write to me"
    encoded = TextEncoder(EXAMPLE / "tokenizer.json", 512).encode([text])[0]
    logits = np.zeros((len(encoded.ids), 2), np.float32)
    logits[:, 1] = 5
    assert [e["entity_group"] for e in entities(logits, encoded, text, ["O", "E-MAIL"])] == ["E-MAIL"]
    assert entities(logits, encoded, text, ["B-X", "o"]) == []


def test_blanks_are_no_entity() -> None:
    text = " \n\n "
    encoded = TextEncoder(EXAMPLE / "tokenizer.json", 512).encode([text])[0]
    assert entities(np.ones((len(encoded.ids), 1), np.float32), encoded, text, ["X"]) == []
