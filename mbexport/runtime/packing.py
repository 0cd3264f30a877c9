"""Several texts in a row, for graphs whose rows hold several: next to no padding, and few shapes.

Rows are filled first, each with the longest text that is left and then the longest ones that fit: best-fit
decreasing. Then rows that are nearly equally full run together, as texts do elsewhere.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from mbexport.runtime.batches import Limits, plan_batches
from mbexport.runtime.schedule import Run

# Places of a row. Attention over a whole row costs the square of its length, whatever texts are in it, so
# a row is the shortest of these that takes its longest text.
ROWS = (128, 256, 512, 1024, 2048, 4096, 8192)
MOST_PADDING = 0.03  # share of a run's places; less costs more runs than it saves
IntArray = npt.NDArray[np.int64]


def plan_packed(lengths: Sequence[int], limits: Limits) -> list[Run]:
    """Runs of all texts, several in a row.

    Args:
        lengths: tokens of each text.
        limits: of the backend.

    Raises:
        InputError: a text is longer than the backend takes; nothing has run then.
    """
    rows = _fill_rows(lengths, limits)
    fills = [sum(lengths[number] for number in row) for row in rows]
    return [_packed(run, rows, lengths) for run in plan_batches(fills, limits, MOST_PADDING)]


def _fill_rows(lengths: Sequence[int], limits: Limits) -> list[list[int]]:
    """Numbers of the texts of each row."""
    left = sorted(range(len(lengths)), key=lambda number: lengths[number])
    sizes = [lengths[number] for number in left]
    rows = []
    while left:
        row, size = [left.pop()], sizes.pop()
        free = _places(size, limits) - size
        while (fitting := bisect_right(sizes, free)) > 0:
            free -= sizes.pop(fitting - 1)
            row.append(left.pop(fitting - 1))
        rows.append(row)
    return rows


def _places(length: int, limits: Limits) -> int:
    """Places of the row that begins with a text of that length, as many as the backend takes."""
    longest = max((profile.largest[1] for profile in limits.profiles), default=ROWS[-1])
    return max(length, min(longest, next((row for row in ROWS if row >= length), length)))


def _packed(run: Run, rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> Run:
    """A run of rows as one of the texts in them."""
    texts: list[int] = []
    starts: list[int] = []
    for place, number in enumerate(run.texts):
        sizes = [lengths[text] for text in rows[number]]
        texts.extend(rows[number])
        starts.extend(place * run.length + start for start in accumulate(sizes[:-1], initial=0))
    return Run(tuple(texts), run.length, tuple(starts))


def positions_of(texts: IntArray) -> IntArray:
    """Places of tokens in their texts.

    Args:
        texts: [batch, sequence], a number for each text of a row, one behind another; 0 is padding.

    Returns:
        [batch, sequence], from 0 for each text, and 0 in padding: no table of positions need reach as far as a row.
    """
    places = np.arange(texts.shape[1])
    begins = np.ones_like(texts, bool)
    begins[:, 1:] = texts[:, 1:] != texts[:, :-1]
    within = places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    return np.where(texts == 0, 0, within).astype(np.int64)
