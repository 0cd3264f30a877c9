"""What stands behind the figures of a comparison: inputs, single errors, predictions that are others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mbexport.parity.limits import Terms
from mbexport.parity.report import Disagreement, Histogram, InputFigures
from mbexport.parity.samples import IntArray

FloatArray = npt.NDArray[np.float32]
EDGES = tuple(float(f"{10 ** (third / 3):.6g}") for third in range(-27, 10))  # three a decade, 1e-9 to 1e3
LISTED, TEXT_SHOWN = 50, 200  # disagreements of a report, characters of a text
SPANS = ("start", "end")  # outputs whose predictions are places


@dataclass(frozen=True)
class Row:
    """Reference and graph outputs of one text: [units, outputs], a unit being the text or a token.

    ``text``: its number among those given, or None; ``places``: of the tokens that the units are, or None.
    """

    length: int
    padding: str
    text: int | None
    places: IntArray | None
    expected: FloatArray
    found: FloatArray

    def chosen(self, values: FloatArray, predicts: str | None) -> IntArray:
        """What outputs of this row predict: the largest of each unit, or the unit with the largest of each output."""
        if predicts is None:
            return np.zeros(0, np.int64)
        chosen: IntArray = values.argmax(axis=-1 if predicts == "outputs" else 0)
        return chosen


def largest_error(expected: FloatArray, found: FloatArray) -> float:
    """The largest absolute error; max() would pass over a NaN, so an output that is not finite counts as infinite."""
    error = float(np.abs(found.astype(np.float32) - expected).max())
    return error if np.isfinite(error) else float("inf")


def input_figures(row: Row) -> InputFigures:
    """The row as a report has it."""
    return InputFigures(row.length, row.padding, largest_error(row.expected, row.found), row.text)


def histogram_of(rows: Sequence[Row]) -> Histogram:
    """Of the absolute errors of all single outputs; what is not finite counts as beyond the last edge, so in there."""
    counts = np.zeros(len(EDGES) - 1, np.int64)
    for row in rows:
        errors = np.abs(row.found.astype(np.float64) - row.expected)
        errors = np.nan_to_num(errors, nan=EDGES[-1], posinf=EDGES[-1])
        counts += np.histogram(np.clip(errors, EDGES[0], EDGES[-1]), EDGES)[0]
    return Histogram(EDGES, tuple(counts.tolist()))


def disagreements_of(rows: Sequence[Row], terms: Terms) -> tuple[tuple[Disagreement, ...], int]:
    """Predictions that are others than the reference's, the least of a tie first, and how many there are in all."""
    found: list[Disagreement] = []
    for row in rows:
        before, after = row.chosen(row.expected, terms.predicts), row.chosen(row.found, terms.predicts)
        differing = np.flatnonzero(before != after).tolist()
        found += [_disagreement(row, number, int(after[number]), terms) for number in differing]
    found.sort(key=lambda item: -item.margin)
    return tuple(found[:LISTED]), len(found)


def _disagreement(row: Row, number: int, preferred: int, terms: Terms) -> Disagreement:
    """The prediction ``number`` of a row: of a unit, or of an output whose prediction is a unit."""
    by_unit = terms.predicts == "outputs"
    values = row.expected[number] if by_unit else row.expected[:, number]
    best = int(values.argmax())
    token = None if row.places is None or not by_unit else int(row.places[number])
    if by_unit:
        names = [terms.labels[item] if item < len(terms.labels) else str(item) for item in (best, preferred)]
    else:
        places = range(len(values)) if row.places is None else row.places.tolist()
        names = [f"{SPANS[number] if number < len(SPANS) else number} {places[item]}" for item in (best, preferred)]
    text = None if row.text is None or row.text >= len(terms.texts) else terms.texts[row.text][:TEXT_SHOWN]
    margin = float(values[best]) - float(values[preferred])
    return Disagreement(text, row.length, row.padding, token, names[0], names[1], margin)
