"""A contender and the reference in turns, A B B A A B ..., so that a clock that changes hits both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from mbexport.bench.process import WorkerProcess
from mbexport.errors import ContenderError

TURNS, SLOW_TURNS = 5, 3
SECONDS = 0.3  # of a turn, at least
LEAST, LEAST_SLOW = 3, 2  # runs of a turn, at least
SLOW, VERY_SLOW = 0.15, 2.0  # seconds a run, from which there are fewer turns; from which a turn is one run
SETTLED = 0.03  # share by which two turns of a warm-up may differ
LONGEST_WARM_UP = 15.0  # seconds


class ReferenceFailedError(ContenderError):
    """It was not the contender that failed."""


def take_turns(workers: Sequence[WorkerProcess], warm_up: float) -> dict[str, Any]:
    """Time a workload that all of them have run once.

    Args:
        workers: the reference and the contender, or the reference alone.
        warm_up: seconds that the contender runs before it is timed, at least; it runs on until its times settle.

    Returns:
        ``seconds``: the contender's median; ``reference``: the reference's, in the same minutes; ``ratio``: the median
        over the turns of the reference's time over the contender's, so that more is faster; ``runs``: how many.

    Raises:
        ReferenceFailedError: the reference failed.
        ContenderError: the contender failed.
    """
    slowest = max(_settle(worker, warm_up if worker is workers[-1] else 0, workers) for worker in workers)
    turns, least = (TURNS, LEAST) if slowest < SLOW else (SLOW_TURNS, 1 if slowest >= VERY_SLOW else LEAST_SLOW)
    times: dict[int, list[list[float]]] = {number: [] for number in range(len(workers))}
    for turn in range(turns):
        order = range(len(workers)) if turn % 2 == 0 else reversed(range(len(workers)))
        for number in order:
            times[number].append(_repeat(workers[number], SECONDS, least, workers))
    own, other = times[len(workers) - 1], times[0]
    ratios = [statistics.median(b) / statistics.median(a) for a, b in zip(own, other, strict=True)]
    return {
        "seconds": statistics.median(value for turn in own for value in turn),
        "reference": statistics.median(value for turn in other for value in turn),
        "ratio": statistics.median(ratios),
        "runs": sum(map(len, own)),
    }


def _settle(worker: WorkerProcess, at_least: float, workers: Sequence[WorkerProcess]) -> float:
    """Run until two turns take the same time; the last one's median.

    TensorRT-RTX compiles kernels of a new shape aside and runs others until then; PyTorch compiles, and clocks rise.
    """
    began = time.monotonic()
    before, now = 0.0, statistics.median(_repeat(worker, 0, 1, workers))
    while time.monotonic() - began < LONGEST_WARM_UP and now < VERY_SLOW:
        before, now = now, statistics.median(_repeat(worker, SECONDS, LEAST_SLOW, workers))
        if abs(now - before) <= SETTLED * now and time.monotonic() - began >= at_least:
            break
    return now


def _repeat(worker: WorkerProcess, seconds: float, least: int, workers: Sequence[WorkerProcess]) -> list[float]:
    try:
        times: list[float] = worker.ask(do="repeat", seconds=seconds, least=least)["seconds"]
    except ContenderError as error:
        if worker is workers[0] and len(workers) > 1:
            raise ReferenceFailedError(str(error)) from error
        raise
    return times
