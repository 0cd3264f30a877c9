from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mbexport.errors import BundleError, InputError
from mbexport.manifest import Manifest, Source
from mbexport.runtime.heads import classification, pool, scores
from mbexport.runtime.text import TextEncoder
from tests.checkpoints import EXAMPLE


def test_scores_of_extreme_logits_are_finite() -> None:
    logits = np.array([1e4, -1e4, 0], np.float32)
    assert scores(logits, "softmax").tolist() == [1.0, 0.0, 0.0]
    assert scores(logits, "sigmoid").tolist() == [1.0, 0.0, 0.5]
    assert scores(logits, "none").tolist() == [1e4, -1e4, 0.0]


def manifest(activation: str, labels: tuple[str, ...]) -> Manifest:
    return Manifest(Source("m", "0"), "text-classification", 8192, labels=labels, activation=activation)


def test_answers_by_kind_of_problem() -> None:
    logits = np.array([0.0, 2.0], np.float32)
    single = classification(logits, manifest("softmax", ("a", "b")))
    assert single == {"label": "b", "score": pytest.approx(1 / (1 + np.exp(-2)))}
    several = classification(logits, manifest("sigmoid", ("a", "b")))
    assert several["scores"] == {"a": 0.5, "b": pytest.approx(1 / (1 + np.exp(-2)))}
    assert classification(logits[1:], manifest("none", ("quality",))) == {"label": "quality", "score": 2.0}


def test_pooling() -> None:
    hidden = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert pool(hidden, "cls").tolist() == [0, 1, 2, 3]
    assert pool(hidden, "mean").tolist() == [4, 5, 6, 7]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(EXAMPLE / "tokenizer.json", 32)


def test_tokens_equal_transformers(encoder: TextEncoder) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(EXAMPLE)
    texts = ["", "Shares fell.", "naïve café 東京 🎉", "a\x00b", "[MASK] [SEP]", "long " * 100]
    expected = theirs(texts, truncation=True, max_length=32)["input_ids"]
    assert [item.ids.tolist() for item in encoder.encode(texts)] == expected
    assert [item.truncated for item in encoder.encode(texts)] == [False] * 5 + [True]


def test_pairs_equal_transformers(encoder: TextEncoder) -> None:
    from transformers import AutoTokenizer

    expected = AutoTokenizer.from_pretrained(EXAMPLE)("who won", "the home side")["input_ids"]
    assert encoder.encode([("who won", "the home side")])[0].ids.tolist() == expected


@pytest.mark.parametrize(
    ("item", "message"),
    [(None, "text 1 is a NoneType"), (b"bytes", "text 1 is a bytes"), ("a\ud800b", "lone surrogate at character 1")],
)
def test_what_is_no_text_is_refused_by_number(encoder: TextEncoder, item: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder.encode(["fine", item])  # type: ignore[list-item]


def test_padding_and_truncation_that_the_tokenizer_brings_are_overruled(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(EXAMPLE / "tokenizer.json"))
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(4)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    assert len(TextEncoder(path, 16).encode(["one two three four five six"])[0].ids) > 4
    assert len(TextEncoder(path, 16).encode(["one"])[0].ids) < 8


def test_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(BundleError, match="missing"):
        TextEncoder(path, 16)
    path.write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json is no usable tokenizer"):
        TextEncoder(path, 16)
