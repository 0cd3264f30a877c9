"""Figures of the quality gate by hand, and the search for what to keep."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from mbexport.errors import InputError
from mbexport.manifest import Manifest, Source
from mbexport.quantize.quality import Limits, measure, predictions
from mbexport.quantize.samples import Sample, disjoint, few_note, split
from mbexport.quantize.search import Sensitivity, fewest_kept
from mbexport.texts import Example

SOURCE = Source("model", "0" * 64)
TOPICS = Manifest(SOURCE, "text-classification", 512, labels=("a", "b"), activation="softmax")
TAGS = Manifest(SOURCE, "text-classification", 512, labels=("a", "b"), activation="sigmoid")
SCORE = Manifest(SOURCE, "text-classification", 512, labels=("score",), activation="sigmoid")
SPANS = Manifest(SOURCE, "question-answering", 512)
ENTITIES = Manifest(SOURCE, "token-classification", 512, labels=("O", "B", "I"))
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
    assert quality.predictions == 3  # what neither gives does not count
    assert quality.agreement == pytest.approx(100 * 2 / 3)


def test_what_is_nearly_always_predicted_hides_nothing() -> None:
    """Two entities in a hundred tokens, both lost."""
    before = np.zeros((100, 3), np.float32)
    before[:, 0], before[[3, 50], 1] = 1, 2
    after = before.copy()
    after[:, 1:] = 0
    quality = measure(ENTITIES, [before], [after], [None])
    assert (quality.predictions, quality.agreement) == (2, 0)
    assert measure(ENTITIES, [before], [before], [None]).agreement == 100


def test_spans_count_both_ends() -> None:
    before = [np.array([[0, 1], [5, 0], [0, 3]], np.float32)]  # start 1, end 2
    after = [np.array([[0, 4], [5, 0], [0, 3]], np.float32)]  # start 1, end 0
    np.testing.assert_array_equal(predictions(SPANS, before), [1, 2])
    assert measure(SPANS, before, after, [None]).agreement == 50


def test_scores_and_vectors_have_a_similarity() -> None:
    scores = rows([1], [2], [3])
    assert measure(SCORE, scores, scores, [None] * 3).similarity == 1
    assert measure(SCORE, scores, rows([1.1], [2.1], [3.1]), [None] * 3).similarity == pytest.approx(1 - 0.01 * 1.5)
    for other in (rows([10], [20], [30]), rows([3], [2], [1]), rows([4], [5], [6])):  # larger, turned round, shifted
        assert measure(SCORE, scores, other, [None] * 3).similarity < 0
    assert measure(SCORE, rows([5]), rows([5.001]), [None]).similarity == pytest.approx(1, abs=1e-6)
    quality = measure(VECTORS, rows([1, 0], [0, 1]), rows([1, 0], [1, 1]), [None] * 2)
    assert quality.similarity == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert quality.agreement is None
    assert len(quality.faults(Limits())) == 1


def test_outputs_that_are_not_finite_fail() -> None:
    quality = measure(TOPICS, rows([2, 0], [0, 2]), rows([math.nan, 0], [0, 2]), [None, None])
    assert "outputs are not finite" in quality.faults(Limits(min_agreement=0))


def samples(*texts: Sequence[int]) -> tuple[Sample, ...]:
    return tuple(Sample(np.array(text, np.int64), None, None) for text in texts)


def test_texts_are_split() -> None:
    examples = [Example(f"text {number}", "a") for number in range(100)]
    first, second = split(examples, None)
    assert (len(first), len(second)) == (50, 50)
    assert not {example.text for example in first} & {example.text for example in second}
    assert split(examples, None) == (first, second)
    assert split(examples[:1], examples[1:3]) == (examples[:1], examples[1:3])
    with pytest.raises(InputError, match="expected 2 or more"):
        split(examples[:1], None)


def test_no_text_is_there_twice_nor_in_both() -> None:
    """Told by their tokens: what differs in blanks, or beyond the cut, is the same to the model."""
    found = disjoint(samples([1, 2], [1, 2], [3]), samples([3], [4], [4]))
    assert [sample.ids.tolist() for sample in found.calibration] == [[1, 2], [3]]
    assert [sample.ids.tolist() for sample in found.held_out] == [[4]]
    with pytest.raises(InputError, match="give other texts"):
        disjoint(samples([1]), samples([1]))


def test_few_predictions_are_told_of() -> None:
    values = rows(*([number % 2, 1 - number % 2] for number in range(100)))
    labels = [None] * 100
    assert few_note(TOPICS, measure(TOPICS, values, values, labels)) is None
    note = few_note(TOPICS, measure(TOPICS, values[:8], values[:8], labels[:8]))
    assert note is not None
    assert "8 predictions only: one that differs is 12.5 %" in note


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
