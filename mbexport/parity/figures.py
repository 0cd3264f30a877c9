"""Figures of a comparison, and the limits they are held to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mbexport.parity.samples import PADDINGS, Case

FloatArray = npt.NDArray[np.float32]

# Upper ends of the length buckets of a report; up to 65 tokens no window cuts anything.
BUCKETS = (65, 128, 256, 512, 1024, 2048, 4096, 8192, 2**24)

# Largest error of an FP32 graph: this share of the reference's spread, and no less than the
# rounding of values near 1 after some twenty layers.
RELATIVE_LIMIT, ABSOLUTE_LIMIT = 2e-5, 1e-5


@dataclass(frozen=True)
class Figures:
    """A comparison over some rows.

    ``relative_error`` is the largest error over the spread (largest minus smallest value)
    of all reference outputs; ``cosine`` the smallest over rows (tokens, for a bare encoder);
    ``agreement`` the share of equal predictions, None without a classifier.
    """

    rows: int
    max_error: float
    relative_error: float
    cosine: float
    agreement: float | None


@dataclass(frozen=True)
class GraphParity:
    """One graph against the reference: over all, by length and by padding."""

    file: str
    passed: bool
    limit: float
    spread: float
    overall: Figures
    by_length: dict[str, Figures]
    by_padding: dict[str, Figures]


@dataclass(frozen=True)
class ParityReport:
    """What ``validate`` found."""

    passed: bool
    reference: str
    texts: str
    graphs: tuple[GraphParity, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class _Row:
    """Reference and graph outputs of one text: [labels], or [real tokens, hidden]."""

    length: int
    padding: str
    expected: FloatArray
    found: FloatArray


def compare(
    file: str,
    cases: Sequence[Case],
    expected: Sequence[FloatArray],
    found: Sequence[FloatArray],
    *,
    classifier: bool,
    reference_error: float = 0.0,
) -> GraphParity:
    """Compare a graph's outputs with the reference's.

    Args:
        file: the graph, for the report.
        cases: the inputs.
        expected: the reference's output for each.
        found: the graph's.
        classifier: outputs are logits [batch, labels]; else hidden states [batch, sequence,
            hidden], of which only real tokens count.
        reference_error: what the reference itself may be off (FlashAttention runs in FP16).
    """
    rows = [row for case, e, f in zip(cases, expected, found, strict=True) for row in _rows(case, e, f, classifier)]
    spread = max(float(row.expected.max()) for row in rows) - min(float(row.expected.min()) for row in rows)
    limit = max(ABSOLUTE_LIMIT, RELATIVE_LIMIT * spread) + reference_error
    overall = _figures(rows, spread, classifier)
    return GraphParity(
        file=file,
        passed=bool(overall.max_error <= limit),  # False for NaN too
        limit=limit,
        spread=spread,
        overall=overall,
        by_length={
            f"{low + 1}-{high}": _figures(chosen, spread, classifier)
            for low, high in zip((0, *BUCKETS), BUCKETS, strict=False)
            if (chosen := [row for row in rows if low < row.length <= high])
        },
        by_padding={
            padding: _figures(chosen, spread, classifier)
            for padding in PADDINGS
            if (chosen := [row for row in rows if row.padding == padding])
        },
    )


def _rows(case: Case, expected: FloatArray, found: FloatArray, classifier: bool) -> list[_Row]:
    if found.shape != expected.shape:
        raise ValueError(f"the graph's output has shape {found.shape}, the reference's {expected.shape}")
    rows = []
    for number, padding in enumerate(case.paddings):
        kept = slice(None) if classifier else case.attention_mask[number] == 1
        rows.append(_Row(case.length, padding, expected[number][kept], found[number][kept]))
    return rows


def _figures(rows: Sequence[_Row], spread: float, classifier: bool) -> Figures:
    errors = [float(np.abs(row.found - row.expected).max()) for row in rows]
    # max() would pass over a NaN; a non-finite output is an infinite error.
    error = max(errors) if np.all(np.isfinite(errors)) else float("inf")
    agreement = None
    if classifier and rows[0].expected.size > 1:
        agreement = float(np.mean([row.expected.argmax() == row.found.argmax() for row in rows]))
    return Figures(
        rows=len(rows),
        max_error=error,
        relative_error=error / spread if spread else float("inf") if error else 0.0,
        cosine=min(_cosine(row) for row in rows),
        agreement=agreement,
    )


def _cosine(row: _Row) -> float:
    a, b = row.expected.astype(np.float64), row.found.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(np.min(np.sum(a * b, axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)))
