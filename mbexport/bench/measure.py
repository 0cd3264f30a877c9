"""One workload, all contenders: rounds A B C A B C ..., so that a slow minute hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mbexport.bench.contenders import Contender
from mbexport.bench.process import Pool
from mbexport.bench.workloads import Workload
from mbexport.errors import ContenderError

PAUSE = 0.05  # seconds between turns: threads that spin for more work give up in this time
AGAIN_BELOW = 0.2  # seconds: shorter runs are run twice a turn, and the second counts
ROUNDS = ((0.3, 11), (1.5, 7), (5.0, 5), (20.0, 3), (float("inf"), 2))  # up to these seconds a run


@dataclass
class Run:
    """What one contender did with one workload.

    ``outputs``: the file with its answers, and ``output`` their name. ``alone``: it had no turns
    with the others. ``seconds`` leaves the warm-up out. ``failure`` says why it stopped, if it did.
    """

    contender: Contender
    outputs: Path
    alone: bool
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    output: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Turns:
    """How a workload is run.

    ``folder``: for files that workers read and write. ``rounds``: of seconds a run, how often it
    is repeated. ``alone``: contenders that need the machine's memory for themselves; they are
    measured after the others, each with no other process loaded.
    """

    folder: Path
    rounds: Callable[[float], int]
    alone: frozenset[Contender] = frozenset()
    on_turn: Callable[[str, float], None] = lambda _what, _share: None


def rounds_for(seconds: float) -> int:
    """How often a run of that many seconds is repeated."""
    return next(rounds for limit, rounds in ROUNDS if seconds <= limit)


def measure(
    contenders: Sequence[Contender], workload: Workload, pool: Pool, turns: Turns, rate: Callable[[], float]
) -> tuple[list[Run], list[float]]:
    """Run a workload with each contender, in rounds.

    Args:
        contenders: in the order of their turns.
        workload: all are given the same.
        pool: their processes; they stay loaded, but for those that failed or ran alone.
        turns: rounds, files and who runs alone.
        rate: measures the matrix-product rate once, multiply-adds a second.

    Returns:
        A run per contender, in order, and the rates seen, one a round.
    """
    file = turns.folder / f"{workload.name}.npz"
    workload.save(file)
    runs = {
        contender: Run(contender, turns.folder / f"{workload.name}.{number}.npz", contender in turns.alone)
        for number, contender in enumerate(contenders)
    }
    together = [run for contender, run in runs.items() if contender not in turns.alone]
    groups = [together, *([runs[contender]] for contender in contenders if contender in turns.alone)]
    rates: list[float] = []
    for number, group in enumerate(groups):
        if number:
            pool.close()
        for run in group:
            turns.on_turn(f"{workload.name}: {run.contender.name}, warm-up", number / len(groups))
            _take_turn(run, pool, file, first=True)
        done = 0
        while active := [run for run in group if run.failure is None and done < turns.rounds(min(run.seconds))]:
            planned = max(turns.rounds(min(run.seconds)) for run in active)
            turns.on_turn(f"{workload.name}: round {done + 1} of {planned}", (number + done / planned) / len(groups))
            time.sleep(PAUSE)
            rates.append(rate())
            for run in active:
                time.sleep(PAUSE)
                _take_turn(run, pool, file)
            done += 1
    for run in runs.values():
        run.seconds = run.seconds[1:]  # the first was the warm-up
        if run.contender in turns.alone:
            pool.close(run.contender)
    return list(runs.values()), rates


def _take_turn(run: Run, pool: Pool, workload: Path, *, first: bool = False) -> None:
    """One run; the first of all writes its outputs and notes the peak memory."""
    outputs = str(run.outputs) if first else None
    try:
        worker = pool.worker(run.contender)
        answer = worker.ask(do="run", workload=str(workload), again_below=AGAIN_BELOW, outputs=outputs)
    except ContenderError as error:
        run.failure = str(error)
        pool.close(run.contender)
        return
    run.seconds.append(answer["seconds"])
    if first:
        run.peak_bytes, run.output = answer["peak_bytes"], answer["output"]
