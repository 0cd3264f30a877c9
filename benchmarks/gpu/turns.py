"""A contender and the reference in turns, A B B A A B ..., so that a clock that changes hits both alike."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from mbexport.bench.process import WorkerProcess

TURNS = 5
SECONDS, LEAST = 0.3, 3  # of a turn: so long, and at least so many runs
SLOW = 2.0  # seconds a run, from which a turn is one run, and there are fewer turns
SLOW_TURNS = 3


def take_turns(workers: Sequence[WorkerProcess]) -> dict[str, Any]:
    """Time a workload that all of them have run once.

    Args:
        workers: the reference and the contender, or the reference alone.

    Returns:
        ``seconds``: the contender's median; ``reference``: the reference's, in the same minutes; ``ratio``: the median
        over the turns of the reference's time over the contender's, so that more is faster; ``runs``: how many.
    """
    contender = workers[-1]
    once = contender.ask(do="repeat", seconds=0, least=1)["seconds"][0]  # another warm-up, and how long it takes
    turns, least = (TURNS, LEAST) if once < SLOW else (SLOW_TURNS, 1)
    times: dict[int, list[list[float]]] = {number: [] for number in range(len(workers))}
    for turn in range(turns):
        order = range(len(workers)) if turn % 2 == 0 else reversed(range(len(workers)))
        for number in order:
            times[number].append(workers[number].ask(do="repeat", seconds=SECONDS, least=least)["seconds"])
    own, other = times[len(workers) - 1], times[0]
    ratios = [statistics.median(b) / statistics.median(a) for a, b in zip(own, other, strict=True)]
    return {
        "seconds": statistics.median(value for turn in own for value in turn),
        "reference": statistics.median(value for turn in other for value in turn),
        "ratio": statistics.median(ratios),
        "runs": sum(map(len, own)),
    }
