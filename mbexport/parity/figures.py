"""Figures of a comparison, and the limits they are held to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mbexport.parity.report import Figures, GraphParity
from mbexport.parity.samples import PADDINGS, Case, IntArray

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]

# Upper ends of the length buckets of a report; up to 65 tokens no window cuts anything.
BUCKETS = (65, 128, 256, 512, 1024, 2048, 4096, 8192, 2**24)

# Largest error of an FP32 graph: this share of the reference's spread, and no less than the
# rounding of values near 1 after some twenty layers.
RELATIVE_LIMIT, ABSOLUTE_LIMIT = 2e-5, 1e-5

# A half-precision graph: largest share of the spread, least cosine (where a unit has more outputs than
# two: of one it is a sign), least share of equal predictions. Rounding the weights of a deep model to
# FP16 moves its logits by 1e-3 to 5e-3 of their spread, whatever computes them.
HALF_LIMIT, LEAST_COSINE, LEAST_AGREEMENT = 2e-2, 0.9999, 0.999


@dataclass(frozen=True)
class _Row:
    """Reference and graph outputs of one text: [units, outputs], a unit being the text or a token."""

    length: int
    padding: str
    expected: FloatArray
    found: FloatArray


@dataclass(frozen=True)
class Terms:
    """What graph and reference are.

    predicts: what a prediction is: ``outputs`` (the largest of a unit), ``units`` (the largest of
    each output over a text's units, as for spans), None for none. reference_error: what the
    reference itself may be off (FlashAttention runs in FP16). is_half: whether the graph computes
    in half precision.
    """

    predicts: str | None = None
    reference_error: float = 0.0
    is_half: bool = False


def units(outputs: Sequence[FloatArray], places: IntArray | None) -> FloatArray:
    """A graph's outputs as a comparison takes them, [units, outputs].

    Args:
        outputs: of a batch, [batch, outputs], or [batch, sequence, outputs]; or two, of starts and ends.
        places: the tokens wanted, laid out in one row; None for outputs of whole texts.
    """
    values = np.stack(outputs, axis=-1) if len(outputs) == 2 else outputs[0]  # starts and ends of spans
    return values if places is None else values.reshape(-1, values.shape[-1])[places]


def cosines(expected: FloatArray, found: FloatArray) -> DoubleArray:
    """Of the angle between each two vectors, 0 where one is all zeros; both [..., outputs] -> [...]."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    result: DoubleArray = np.sum(a * b, axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return result


def compare(
    file: str,
    cases: Sequence[Case],
    places: Sequence[IntArray | None],
    expected: Sequence[FloatArray],
    found: Sequence[FloatArray],
    terms: Terms,
) -> GraphParity:
    """Compare a graph's outputs with the reference's.

    Args:
        file: the graph, for the report.
        cases: the inputs.
        places: per case, which tokens the units are (as ``Case.real_tokens`` gives them), or
            None where a unit is a text.
        expected: the reference's outputs of each case, [units, outputs].
        found: the graph's.
        terms: of the comparison.
    """
    groups = zip(cases, places, expected, found, strict=True)
    rows = [row for case, units, e, f in groups for row in _rows(case, units, e, f)]
    spread = max(float(row.expected.max()) for row in rows) - min(float(row.expected.min()) for row in rows)
    overall = _figures(rows, spread, terms.predicts)
    limits = {"max_error": max(ABSOLUTE_LIMIT, RELATIVE_LIMIT * spread) + terms.reference_error}
    if terms.is_half:
        limits = {"max_error": max(ABSOLUTE_LIMIT, HALF_LIMIT * spread)}
        limits |= {"cosine": LEAST_COSINE} if rows[0].expected.shape[-1] > 2 else {}
        limits |= {} if overall.agreement is None else {"agreement": LEAST_AGREEMENT}
    return GraphParity(
        file=file,
        precision="fp16" if terms.is_half else "fp32",
        passed=_within(overall, limits),
        limits=limits,
        spread=spread,
        overall=overall,
        by_length={
            f"{low + 1}-{high}": _figures(chosen, spread, terms.predicts)
            for low, high in zip((0, *BUCKETS), BUCKETS, strict=False)
            if (chosen := [row for row in rows if low < row.length <= high])
        },
        by_padding={
            padding: _figures(chosen, spread, terms.predicts)
            for padding in PADDINGS
            if (chosen := [row for row in rows if row.padding == padding])
        },
    )


def _within(overall: Figures, limits: dict[str, float]) -> bool:
    """Every comparison is False for NaN."""
    agreement = 1.0 if overall.agreement is None else overall.agreement
    return (
        math.isfinite(overall.max_error)
        and overall.max_error <= limits["max_error"]
        and overall.cosine >= limits.get("cosine", -math.inf)
        and agreement >= limits.get("agreement", 0.0)
    )


def _rows(case: Case, places: IntArray | None, expected: FloatArray, found: FloatArray) -> list[_Row]:
    if found.shape != expected.shape:
        raise ValueError(f"the graph's output has shape {found.shape}, the reference's {expected.shape}")
    texts = np.arange(len(expected)) if places is None else places // case.length
    return [
        _Row(case.length, padding, expected[texts == number], found[texts == number])
        for number, padding in enumerate(case.paddings)
        if (texts == number).any()
    ]


def _figures(rows: Sequence[_Row], spread: float, predicts: str | None) -> Figures:
    errors = [float(np.abs(row.found - row.expected).max()) for row in rows]
    # max() would pass over a NaN; a non-finite output is an infinite error.
    error = max(errors) if np.all(np.isfinite(errors)) else float("inf")
    axis = {"outputs": -1, "units": 0}.get(predicts or "")
    agreement = None
    if axis is not None:
        equal = [row.expected.argmax(axis) == row.found.argmax(axis) for row in rows]
        agreement = float(np.mean(np.concatenate(equal)))
    return Figures(
        rows=len(rows),
        max_error=error,
        relative_error=error / spread if spread else float("inf") if error else 0.0,
        cosine=min(float(cosines(row.expected, row.found).min()) for row in rows),
        agreement=agreement,
    )
