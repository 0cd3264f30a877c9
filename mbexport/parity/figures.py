"""Figures of a comparison: a graph's outputs against the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mbexport.parity.findings import Row, disagreements_of, histogram_of, input_figures, largest_error
from mbexport.parity.limits import Terms, limits_of, within
from mbexport.parity.report import Figures, GraphParity
from mbexport.parity.samples import PADDINGS, Case, IntArray

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]

# Upper ends of the length buckets of a report; up to 65 tokens no window cuts anything.
BUCKETS = (65, 128, 256, 512, 1024, 2048, 4096, 8192, 2**24)


@dataclass(frozen=True)
class Outputs:
    """Of each case what is compared: all lists are of the same length.

    places: which tokens the units are (as ``Case.real_tokens`` gives them), or None where a unit is a text.
    expected, found: the reference's and the graph's outputs, [units, outputs].
    """

    cases: Sequence[Case]
    places: Sequence[IntArray | None]
    expected: Sequence[FloatArray]
    found: Sequence[FloatArray]

    def of(self, numbers: Sequence[int]) -> Outputs:
        """Those of some cases."""
        return Outputs(
            [self.cases[n] for n in numbers],
            [self.places[n] for n in numbers],
            [self.expected[n] for n in numbers],
            [self.found[n] for n in numbers],
        )

    def rows(self) -> list[Row]:
        """A row for each text of each case.

        Raises:
            ValueError: an output has another shape than the reference's.
        """
        groups = zip(self.cases, self.places, self.expected, self.found, strict=True)
        return [row for group in groups for row in _rows(*group)]


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
    with np.errstate(invalid="ignore"):  # of values that are not finite it is NaN
        norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        result: DoubleArray = np.sum(a * b, axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return result


def compare(file: str, outputs: Outputs, terms: Terms) -> GraphParity:
    """Compare a graph's outputs with the reference's.

    Args:
        file: the graph, for the report.
        outputs: of both.
        terms: of the comparison.
    """
    rows = outputs.rows()
    spread = max(float(row.expected.max()) for row in rows) - min(float(row.expected.min()) for row in rows)
    overall = _figures(rows, spread, terms.predicts)
    predictions = sum(len(row.chosen(row.expected, terms.predicts)) for row in rows)
    limits = limits_of(terms, spread, rows[0].expected.shape[-1], predictions)
    disagreements, disagreeing = disagreements_of(rows, terms)
    own = terms.own.max_error if terms.own is not None and terms.is_half else 0.0
    return GraphParity(
        file=file,
        precision=terms.precision,
        passed=within(overall, limits),
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
        ratio=overall.max_error / own if own and np.isfinite(own) and terms.is_judged else None,
        inputs=tuple(input_figures(row) for row in rows),
        errors=histogram_of(rows),
        disagreements=disagreements,
        disagreeing=disagreeing,
    )


def case_errors(outputs: Outputs) -> list[float]:
    """The largest error of each case, infinite where an output is not finite."""
    return [largest_error(expected, found) for expected, found in zip(outputs.expected, outputs.found, strict=True)]


def _rows(case: Case, places: IntArray | None, expected: FloatArray, found: FloatArray) -> list[Row]:
    if found.shape != expected.shape:
        raise ValueError(f"the graph's output has shape {found.shape}, the reference's {expected.shape}")
    texts = np.arange(len(expected)) if places is None else places // case.length
    return [
        Row(
            case.length, padding, case.text(number),
            None if places is None else places[texts == number] % case.length,
            expected[texts == number], found[texts == number].astype(np.float32),
        )
        for number, padding in enumerate(case.paddings)
        if (texts == number).any()
    ]  # fmt: skip


def _figures(rows: Sequence[Row], spread: float, predicts: str | None) -> Figures:
    error = max(largest_error(row.expected, row.found) for row in rows)
    agreement = None
    if predicts is not None:
        equal = [row.chosen(row.expected, predicts) == row.chosen(row.found, predicts) for row in rows]
        agreement = float(np.mean(np.concatenate(equal)))
    return Figures(
        rows=len(rows),
        max_error=error,
        relative_error=error / spread if spread else float("inf") if error else 0.0,
        cosine=min(float(cosines(row.expected, row.found).min()) for row in rows),
        agreement=agreement,
    )
