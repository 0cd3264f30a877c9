"""Which texts run together, and whether runs share the cores or take them in turn.

On a CPU a batch buys little: from ENOUGH_TOKENS on, a run keeps its core busy, and every
padded place costs as much as a real token. So texts of one length run together, shorter runs
are filled up with texts that need little padding, and runs stand side by side, one core each,
where there are enough of them; a text alone, or a very long one, gets all cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TOKEN_BUDGET = 16_384  # tokens that are computed at one time; bounds the memory of a call
# Measured on two cores, base size: see benchmarks/NOTES.md.
ENOUGH_TOKENS = 128  # of a run; more make its tokens no cheaper
MOST_TOKENS = 512  # of a run of several texts
MOST_LANES = TOKEN_BUDGET // MOST_TOKENS  # runs side by side
MOST_PADDING = 16  # places by which a text may be padded; a run of its own costs as much
MOST_IDLE = 0.15  # share of the cores' time that may be lost by runs that do not fill them


@dataclass(frozen=True)
class Run:
    """One forward pass: numbers of its texts, and the places of each row.

    ``starts``: where each text begins, row * length + place, growing; None where each has a row of its own.
    """

    texts: tuple[int, ...]
    length: int
    starts: tuple[int, ...] | None = None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.texts) if self.starts is None else self.starts[-1] // self.length + 1

    @property
    def tokens(self) -> int:
        """Places that are computed, padding included."""
        return self.rows * self.length


def plan_runs(lengths: Sequence[int]) -> list[Run]:
    """Runs of all texts, longest rows first.

    Args:
        lengths: tokens of each text.
    """
    runs: list[Run] = []
    group: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if group and not _joins(lengths[number], len(group), lengths[group[0]]):
            runs.append(Run(tuple(group), lengths[group[0]]))
            group = []
        group.append(number)
    return [*runs, Run(tuple(group), lengths[group[0]])] if group else runs


def _joins(length: int, texts: int, longest: int) -> bool:
    """Whether a text gains by joining a run of ``texts`` rows of ``longest`` places."""
    if (texts + 1) * longest > MOST_TOKENS:
        return False
    return length == longest or (longest - length <= MOST_PADDING and texts * longest < ENOUGH_TOKENS)


@dataclass(frozen=True)
class Plan:
    """Runs to take in turn on all cores, and runs to stand side by side, ``lanes`` at a time, on one core each."""

    in_turn: list[Run]
    side_by_side: list[Run]
    lanes: int


def share_cores(runs: Sequence[Run], cores: int) -> Plan:
    """Where each run is done soonest.

    Runs stand side by side where they fill the cores evenly; those too large for that, so that
    together they would exceed TOKEN_BUDGET, are taken in turn.
    """
    lanes = min(cores, MOST_LANES)
    large = [run for run in runs if run.tokens * lanes > TOKEN_BUDGET]
    others = [run for run in runs if run.tokens * lanes <= TOKEN_BUDGET]
    if lanes < 2 or not _fill_evenly(others, lanes):
        return Plan(list(runs), [], 1)
    return Plan(large, others, lanes)


def _fill_evenly(runs: Sequence[Run], lanes: int) -> bool:
    busy = [0] * lanes
    for run in sorted(runs, key=lambda run: -run.tokens):  # each to the core that is free first
        busy[busy.index(min(busy))] += run.tokens
    return len(runs) >= lanes and sum(busy) >= (1 - MOST_IDLE) * max(busy) * lanes
