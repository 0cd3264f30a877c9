"""The first tokens of a long text, made of its beginning alone: always those of the whole text."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from mbexport.runtime import text as text_module
from mbexport.runtime.beginnings import LEAST, beginning, splits_at_blanks
from mbexport.runtime.text import TextEncoder
from tests.checkpoints import EXAMPLE

WORDS = [
    "shares", "fell", "naïve", "東京", "🎉", "e\u0301", "[MASK]", "x" * 300, "", " ", "\n", "\t", "3.14", "don't",
    "\u00a0",
]  # fmt: skip


def long_text(seed: int, words: int = 4000) -> str:
    random = np.random.default_rng(seed)
    return " ".join(random.choice(WORDS, words, p=np.array([40, 30, 5, 5, 5, 5, 1, 1, 2, 2, 1, 1, 1, 1, 0.5]) / 100.5))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("length", [8, 300])
def test_tokens_are_those_of_the_whole_text(seed: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [long_text(seed), long_text(seed) + "a", "a" * 20_000, "\n" * 20_000, " word" * 5000, "ab cd" * 5]
    encoder = TextEncoder(EXAMPLE / "tokenizer.json", length)
    found = encoder.encode(texts)
    whole = TextEncoder(EXAMPLE / "tokenizer.json", length)
    monkeypatch.setattr(whole, "_by_beginnings", False)
    for ours, theirs in zip(found, whole.encode(texts), strict=True):
        assert np.array_equal(ours.ids, theirs.ids)
        assert (ours.truncated, ours.offsets, ours.words) == (theirs.truncated, theirs.offsets, theirs.words)
    assert len(beginning(texts[0], length)) < len(texts[0])  # it was really shortened


def test_what_is_kept_must_end_well_before_the_beginning_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a beginning that is too short is found out, and the whole text tokenized."""
    text = "word " * 20_000
    tried = []
    monkeypatch.setattr(text_module, "beginning", lambda text, _: tried.append(text) or text[:1000])
    encoder = TextEncoder(EXAMPLE / "tokenizer.json", 8000)
    assert len(encoder.encode([text])[0].ids) == 8000
    assert tried == [text]


def test_ten_million_characters_take_no_longer_than_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(EXAMPLE / "tokenizer.json", 512)
    given = []
    batch = encoder._tokenizer.encode_batch

    class Counting:
        def encode_batch(self, texts: list[str]) -> object:
            given.extend(map(len, texts))
            return batch(texts)

    monkeypatch.setattr(encoder, "_tokenizer", Counting())
    started = time.monotonic()
    assert len(encoder.encode(["The bank raised its rate. " * 400_000])[0].ids) == 512
    assert max(given) < 16 * 512 + 1000
    assert time.monotonic() - started < 60


def test_tokenizers_that_look_across_blanks_get_the_whole_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(EXAMPLE / "tokenizer.json"))
    assert splits_at_blanks(tokenizer)
    tokenizer.normalizer = normalizers.Replace("x", "y")
    assert not splits_at_blanks(tokenizer)
    unigram = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("a b", -1.0), ("a", -2.0), (" ", -2.0), ("b", -2.0)], 0, False)
    )
    assert not splits_at_blanks(unigram)
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    assert not splits_at_blanks(unigram)
    unigram.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)
    assert not splits_at_blanks(unigram)
    unigram.pre_tokenizer = None
    unigram.save(str(tmp_path / "tokenizer.json"))
    assert LEAST < 40_000
    encoder = TextEncoder(tmp_path / "tokenizer.json", 16)
    assert len(encoder.encode(["a b" * 20_000])[0].ids) == 16
