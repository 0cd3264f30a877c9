"""Figures, limits and what stands behind them, on numbers made by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from mbexport.cli.show_parity import parity_text
from mbexport.parity.diagnosis.by_outputs import failing_words, has_blind_places
from mbexport.parity.figures import Outputs, compare
from mbexport.parity.limits import Terms, limits_of
from mbexport.parity.report import Diagnosis, Fault, GraphParity, InputFigures, OwnError, ParityReport, StageError
from mbexport.parity.samples import PADDINGS, Case, build_cases


def case(*masks: list[int], texts: tuple[int | None, ...] = ()) -> Case:
    mask = np.array(masks)
    return Case(mask.shape[1], np.ones_like(mask), mask, PADDINGS[: len(masks)], texts)


def texts_outputs(found: list[list[float]]) -> Outputs:
    expected = [np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.9]], np.float32)]
    return Outputs([case([1, 1], [1, 0], texts=(4, 1))], [None], expected, [np.array(found, np.float32)])


TERMS = Terms("outputs", labels=("a", "b", "c"), texts=("zero", "one " * 100, "two", "three", "four"))


def test_inputs_errors_and_disagreements() -> None:
    parity = compare("x", texts_outputs([[2.99, 1.0, 0.0], [0.0, 1.0, 1.9]]), TERMS)
    assert [(item.length, item.padding, item.text) for item in parity.inputs] == [(2, "none", 4), (2, "right", 1)]
    assert [item.max_error for item in parity.inputs] == [pytest.approx(0.01, rel=1e-3), 1.0]
    assert parity.errors is not None
    counts = dict(zip(parity.errors.edges, parity.errors.counts, strict=False))
    assert len(parity.errors.edges) == len(parity.errors.counts) + 1 == 37
    assert (parity.errors.edges[0], parity.errors.edges[-1], counts[1e-9], counts[1.0]) == (1e-9, 1e3, 4, 1)
    (only,) = parity.disagreements
    assert (only.expected, only.found, only.token, parity.disagreeing) == ("b", "c", None, 1)
    assert only.margin == pytest.approx(0.1, rel=1e-5)
    assert only.text == ("one " * 100)[:200]


def test_what_is_not_finite_counts_as_infinite() -> None:
    parity = compare("x", texts_outputs([[math.nan, 1.0, 0.0], [0.0, math.inf, 1.9]]), TERMS)
    assert [item.max_error for item in parity.inputs] == [math.inf, math.inf]
    assert parity.errors is not None
    assert (parity.errors.counts[-1], sum(parity.errors.counts)) == (2, 6)
    assert not parity.passed


def test_disagreements_of_tokens_are_sorted_and_cut() -> None:
    expected = np.zeros((60, 2), np.float32)
    expected[:, 0] = np.linspace(0.1, 1, 60)
    outputs = Outputs([case([1] * 60)], [np.arange(60)], [expected], [expected[:, ::-1].copy()])
    parity = compare("x", outputs, Terms("outputs"))
    assert (parity.disagreeing, len(parity.disagreements)) == (60, 50)
    assert [item.token for item in parity.disagreements[:2]] == [59, 58]
    assert (parity.disagreements[0].expected, parity.disagreements[0].found) == ("0", "1")


def test_predictions_that_are_places() -> None:
    expected = np.array([[5, 0], [0, 1], [0, 6]], np.float32)
    found = np.array([[5, 0], [0, 7], [0, 6]], np.float32)
    outputs = Outputs([case([1, 0, 1, 1])], [np.array([0, 2, 3])], [expected], [found])
    (only,) = compare("x", outputs, Terms("units")).disagreements
    assert (only.expected, only.found, only.margin) == ("end 3", "end 2", 5.0)


def test_texts_keep_their_numbers_through_sorting() -> None:
    ids = [np.arange(9), np.arange(3), np.arange(6)]
    first, *lengths = build_cases(ids, 0, 64, 16, numbers=[0, 2, 5])
    assert (first.texts, first.attention_mask.sum(axis=1).tolist()) == ((2, 5, 0), [3, 6, 9])
    assert all(item.texts == () and item.text(0) is None for item in lengths)


OWN = OwnError("PyTorch", 0.01, 0.9999, 0.99)


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (Terms(), {"max_error": 2e-4}),
        (Terms(reference_error=0.5), {"max_error": 0.5002}),
        (Terms(is_half=True), {"max_error": 0.2, "cosine": 0.9999, "agreement": 0.999}),
        (Terms(is_half=True, own=OWN), {"max_error": 0.02, "cosine": 0.9996, "agreement": 0.98}),
        (
            Terms(is_half=True, own=OwnError("", 1e-9, 1.0, 1.0)),  # as good as exact: the floors
            {"max_error": 1e-5, "cosine": 0.9999, "agreement": 0.998},
        ),
        (
            Terms(is_half=True, own=OwnError("destroyed", 30.0, -0.5, 0.1)),  # as bad as it, nothing would fail
            {"max_error": 1.0, "cosine": 0.9, "agreement": 0.95},
        ),
        (
            Terms(is_half=True, own=OwnError("overflows", math.inf, math.nan, 0.5)),  # says nothing
            {"max_error": 0.2, "cosine": 0.9999, "agreement": 0.999},
        ),
        (Terms(own=OWN), {"max_error": 2e-4}),  # an FP32 graph is not measured by half precision
        (Terms(is_judged=False), {}),
    ],
)
def test_limits(terms: Terms, expected: dict[str, float]) -> None:
    assert limits_of(terms, spread=10.0, outputs=3, predictions=500) == pytest.approx(expected)


def test_limits_without_predictions_and_of_pairs() -> None:
    assert limits_of(Terms(is_half=True, own=OWN), 10.0, 2, 0) == {"max_error": 0.02}


def figures(*errors: tuple[int, str, float]) -> list[InputFigures]:
    return [InputFigures(*item) for item in errors]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (figures((3, "none", 0.1), (9, "none", 0.2)), "no input of 2 has an error beyond the limit"),
        (figures((3, "none", 2), (9, "none", 2)), "every input fails"),
        (figures((3, "none", 0), (9, "none", 2), (9, "left", 2)), "2 of 3 inputs fail, all from 9 tokens on"),
        (
            figures((1, "none", 0), (9, "none", 0), (9, "left", 2), (12, "left", 0)),
            "1 of 4 inputs fail, the shortest of 9 tokens, only those with padding on the left",
        ),
    ],
)
def test_which_inputs_fail(inputs: list[InputFigures], words: str) -> None:
    assert failing_words(inputs, 1.0) == words


def test_places_that_see_nothing() -> None:
    assert not has_blind_places(case([1, 0, 0, 1], [0, 0, 1, 1]), half_window=2)
    assert has_blind_places(case([1, 0, 0, 0]), half_window=2)
    assert has_blind_places(case([0, 0, 0, 1]), half_window=2)
    assert has_blind_places(case([1, 0, 0, 0, 1]), half_window=1)
    assert not has_blind_places(case([1, 0, 0, 1]), half_window=1)


def stages() -> tuple[StageError, ...]:
    kinds = ["global attention", *["local attention"] * 5]
    attention = [
        StageError(f"layers.{n}.attn", kind, 0.3 if kind.startswith("local") else 1e-7, 0.1 * n, 1e-5)
        for n, kind in enumerate(kinds)
    ]
    rest = [StageError(f"layers.{n}.mlp", "mlp", 1e-7, 0.1, 1e-5) for n in range(6)]
    pairs = [stage for pair in zip(attention, rest, strict=True) for stage in pair]
    return (StageError("embeddings", "embeddings", 0, 0, 1e-5), *pairs, StageError("head", "head", 0, 0.1, 1e-5))


def report_with(diagnosis: Diagnosis) -> ParityReport:
    parity = compare("onnx/model.onnx", texts_outputs([[9.0, 1, 0], [0, 2, 1.9]]), TERMS)
    graph = GraphParity(**(parity.__dict__ | {"diagnosis": diagnosis}))
    return ParityReport(False, "sdpa", "2 texts", 2, (graph,), {}, subject="b", environment={"torch": "2"})


def test_the_terminal_names_stages_and_causes() -> None:
    names = tuple(f"layers.{n}.attn" for n in range(1, 6))
    fault = Fault(
        names, "local attention", "attended", "window", "the window is 63", 1e-7, "from 65 tokens on", "all channels"
    )
    shown = parity_text(report_with(Diagnosis("1 x 66", stages(), (fault,), "the window is 63 in all local layers")))
    lines = shown.splitlines()
    assert lines[:2] == [
        "FAILED: 1 of 1 graph of b against PyTorch", "  onnx/model.onnx: the window is 63 in all local layers"
    ]  # fmt: skip
    assert "  where     layers.1.attn, layers.2.attn and 3 more (local attention, all 5), first in attended" in lines
    assert "  what      window: the window is 63" in lines
    assert "  evidence  computed with that fault, an error of 1.0e-07 is left" in lines
    assert not any(line.startswith("embeddings ") for line in lines)  # far from any fault
    assert sum("<- wrong" in line for line in lines) == 5
    every = parity_text(report_with(Diagnosis("1 x 66", stages(), (fault,), "x")), all_stages=True)
    assert any(line.startswith("embeddings ") for line in every.splitlines())


def test_control_characters_of_texts_do_not_reach_the_terminal() -> None:
    terms = Terms("outputs", texts=("", "a\x1b[31mred\x07"))
    parity = compare("x", texts_outputs([[3, 1, 0], [2, 0, 1.9]]), terms)
    shown = parity_text(ParityReport(False, "", "", 2, (parity,), subject=str(Path("b"))))
    assert "red" in shown
    assert "\x1b" not in shown
    assert "\x07" not in shown
