"""Figures of the quality gate by hand, and the search for what to keep."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from mbexport.errors import InputError
from mbexport.manifest import Manifest, Source
from mbexport.quantize.quality import Limits, measure, predictions
from mbexport.quantize.samples import split
from mbexport.quantize.search import Sensitivity, fewest_kept
from mbexport.texts import Example

SOURCE = Source("model", "0" * 64)
TOPICS = Manifest(SOURCE, "text-classification", 512, labels=("a", "b"), activation="softmax")
TAGS = Manifest(SOURCE, "text-classification", 512, labels=("a", "b"), activation="sigmoid")
SCORE = Manifest(SOURCE, "text-classification", 512, labels=("score",), activation="sigmoid")
SPANS = Manifest(SOURCE, "question-answering", 512)
VECTORS = Manifest(SOURCE, "feature-extraction", 512, pooling="mean")


def rows(*values: Sequence[float]) -> list[np.ndarray]:
    return [np.array([value], np.float32) for value in values]


def test_classes() -> None:
    before, after = rows([2, 0], [0, 2], [3, 1], [0, 1]), rows([2, 0], [2, 0], [3, 1], [0, 1])
    quality = measure(TOPICS, before, after, ["a", "b", "a", "b"])
    assert (quality.texts, quality.predictions, quality.agreement) == (4, 4, 75.0)
    # a: 2 hits of 3 chosen and 2 true, 4/5; b: 1 hit of 1 chosen and 2 true, 2/3.
    assert quality.f1 == pytest.approx(100 * (4 / 5 + 2 / 3) / 2)
    assert quality.f1_drop == pytest.approx(100 - 100 * (4 / 5 + 2 / 3) / 2)
    assert quality.similarity is None
    assert len(quality.faults(Limits())) == 2
    assert quality.faults(Limits(min_agreement=75, max_f1_drop=30)) == []


@pytest.mark.parametrize("labels", [[None] * 4, ["a", "b", "a", "other"], ["a", "b", "a", None]])
def test_no_f1_without_all_labels(labels: list[str | None]) -> None:
    values = rows([2, 0], [0, 2], [3, 1], [0, 1])
    assert measure(TOPICS, values, values, labels).f1 is None


def test_labels_that_do_not_exclude_one_another_count_one_by_one() -> None:
    quality = measure(TAGS, rows([2, 1], [-1, 2]), rows([2, -1], [-1, 2]), [None, None])
    assert (quality.predictions, quality.agreement) == (4, 75.0)


def test_spans_count_both_ends() -> None:
    before = [np.array([[0, 1], [5, 0], [0, 3]], np.float32)]  # start 1, end 2
    after = [np.array([[0, 4], [5, 0], [0, 3]], np.float32)]  # start 1, end 0
    np.testing.assert_array_equal(predictions(SPANS, before), [1, 2])
    assert measure(SPANS, before, after, [None]).agreement == 50


def test_scores_and_vectors_have_a_similarity() -> None:
    scores = rows([1], [2], [3])
    assert measure(SCORE, scores, rows([10], [20], [30]), [None] * 3).similarity == pytest.approx(1)
    assert measure(SCORE, scores, rows([3], [2], [1]), [None] * 3).similarity == pytest.approx(-1)
    quality = measure(VECTORS, rows([1, 0], [0, 1]), rows([1, 0], [1, 1]), [None] * 2)
    assert quality.similarity == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert quality.agreement is None
    assert len(quality.faults(Limits())) == 1


def test_outputs_that_are_not_finite_fail() -> None:
    quality = measure(TOPICS, rows([2, 0], [0, 2]), rows([math.nan, 0], [0, 2]), [None, None])
    assert "outputs are not finite" in quality.faults(Limits(min_agreement=0))


def test_texts_are_split_and_none_is_in_both() -> None:
    examples = [Example(f"text {number % 50}", "a") for number in range(100)]
    first, second = split(examples, None)
    assert (len(first), len(second)) == (25, 25)
    assert not {example.text for example in first} & {example.text for example in second}
    assert split(examples, None) == (first, second)


def test_held_out_texts_lose_those_of_the_calibration() -> None:
    first, second = split([Example("one"), Example("two")], [Example("two"), Example("three")])
    assert [example.text for example in first] == ["one", "two"]
    assert [example.text for example in second] == ["three"]
    with pytest.raises(InputError, match="give other texts"):
        split([Example("one")], [Example("one")])
    with pytest.raises(InputError, match="expected 2 or more"):
        split([Example("one")], None)


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 7, 8])
def test_as_few_parts_are_kept_as_are_needed(needed: int) -> None:
    ranking = [Sensitivity(f"part {number:02}", 1 / (1 + number)) for number in range(16)]
    tried = []

    def passes(parts: Sequence[str]) -> bool:
        tried.append(len(parts))
        return len(parts) >= needed

    assert fewest_kept(ranking, passes) == tuple(f"part {number:02}" for number in range(needed))
    assert len(tried) <= 7


def test_a_graph_that_would_keep_more_than_half_cannot_pass() -> None:
    ranking = [Sensitivity(f"part {number}", 1) for number in range(16)]
    assert fewest_kept(ranking, lambda parts: len(parts) > 8) is None
