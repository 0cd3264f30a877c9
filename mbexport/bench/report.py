"""What a benchmark found, and its JSON. Standard library only."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbexport.bench.contenders import OWN
from mbexport.bench.machine import Machine
from mbexport.errors import InputError
from mbexport.files import read_json, to_json, write_atomically

SCHEMA_VERSION = 1
MEASURED, FAILED, LEFT_OUT = "measured", "failed", "left out"


@dataclass(frozen=True)
class Agreement:
    """Outputs against the first contender's.

    ``difference``: the largest; ``limit``: what is allowed. Both are None where nothing could be
    compared, which ``reason`` explains. ``share``: the difference over the first one's spread.
    """

    difference: float | None = None
    limit: float | None = None
    wrong: bool = False
    reason: str | None = None
    share: float | None = None


@dataclass(frozen=True)
class Row:
    """One contender's figures on one workload.

    ``seconds``: of each round; ``median``, ``minimum`` and ``spread`` (between the quartiles) of
    them. ``ratio``: this contender's time over the first one's, see :func:`ratio_of`.
    ``floor_share``: the arithmetic floor over the median. ``peak_bytes``: resident memory of a
    fresh process that ran the workload once; None where it was not taken. All are None or empty
    unless ``state`` is ``measured``; ``reason`` says why.
    """

    contender: str
    state: str
    reason: str | None = None
    seconds: tuple[float, ...] = ()
    median: float | None = None
    minimum: float | None = None
    spread: float | None = None
    ratio: float | None = None
    tokens_per_second: float | None = None
    floor_share: float | None = None
    peak_bytes: int | None = None
    agreement: Agreement | None = None

    @property
    def counts(self) -> bool:
        """Whether it was measured and its answers are not wrong."""
        return self.state == MEASURED and not (self.agreement and self.agreement.wrong)


@dataclass(frozen=True)
class WorkloadFigures:
    """One workload: what it is, its floor in seconds (None without a rate), a row per contender.

    ``tokens``: real ones; ``longest``: tokens of the longest row.
    """

    name: str
    texts: int
    tokens: int
    longest: int
    batch: int
    padding: str
    multiply_adds: int
    floor: float | None
    rows: tuple[Row, ...]

    def row(self, contender: str) -> Row | None:
        """A contender's row."""
        return next((row for row in self.rows if row.contender == contender), None)

    def best_peer(self, own: Collection[str]) -> Row | None:
        """The fastest of the rows that count; ``own`` are the contenders that are no peers."""
        peers = [row for row in self.rows if row.counts and row.contender not in own]
        return min(peers, key=lambda row: row.median or 0, default=None)


@dataclass(frozen=True)
class Start:
    """Seconds from before a runtime's import to its first answer, 1x16, warm page cache.

    ``total`` and ``load`` (the part without the run) are medians of ``totals`` and their loads;
    None where it failed or was left out, which ``reason`` explains.
    """

    contender: str
    total: float | None = None
    load: float | None = None
    totals: tuple[float, ...] = ()
    reason: str | None = None
    failed: bool = False


@dataclass(frozen=True)
class Entrant:
    """A contender and the versions of the packages it ran with."""

    name: str
    kind: str
    path: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Report:
    """A whole benchmark.

    ``rate``: multiply-adds a second of the model's matrix products, the best median of the run.
    ``parts``: by workload, seconds of our graph's node kinds, where they were profiled.
    """

    date: str
    model: str
    machine: Machine
    entrants: tuple[Entrant, ...]
    rate: float | None
    workloads: tuple[WorkloadFigures, ...]
    starts: tuple[Start, ...]
    notes: tuple[str, ...] = ()
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def own(self) -> frozenset[str]:
        """Names of the contenders that are this package's runtime, the first one among them."""
        first, *others = self.entrants
        return frozenset([first.name, *(entrant.name for entrant in others if entrant.kind in OWN)])

    @property
    def faults(self) -> list[str]:
        """Every contender that failed or answered wrong, in words."""
        rows = [(figures.name, row) for figures in self.workloads for row in figures.rows]
        failed = [f"{row.contender} failed on {name}: {row.reason}" for name, row in rows if row.state == FAILED]
        wrong = [
            f"{row.contender} is WRONG on {name}" for name, row in rows if row.state == MEASURED and not row.counts
        ]
        starts = [f"{start.contender} failed at its start: {start.reason}" for start in self.starts if start.failed]
        return failed + wrong + starts

    def to_json(self) -> str:
        """The report as indented JSON, a line break at its end."""
        return to_json(dataclasses.asdict(self)) + "\n"


def quartile_range(values: Sequence[float]) -> float:
    """The distance between the quartiles; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def ratio_of(seconds: Sequence[float], reference: Sequence[float], *, paired: bool) -> float | None:
    """Seconds / reference; None without any.

    ``paired``: the median over the rounds that both have; else of the medians, for runs that did
    not take turns.
    """
    if not paired and seconds and reference:
        return statistics.median(seconds) / statistics.median(reference)
    ratios = [own / other for own, other in zip(seconds, reference, strict=False)]
    return statistics.median(ratios) if ratios else None


def write(report: Report, path: Path) -> None:
    """Write a report in one step."""
    write_atomically(path, report.to_json())


def read(path: Path) -> Report:
    """A report that :func:`write` wrote.

    Raises:
        InputError: no such file, another version, or a damaged one.
    """
    raw = read_json(path, InputError)
    if raw.get("schema_version") != SCHEMA_VERSION:
        found = raw.get("schema_version")
        raise InputError(f"{path} has schema_version {found!r}, this mbexport reads {SCHEMA_VERSION}; measure again")
    try:
        return _report(raw)
    except (KeyError, TypeError, ValueError) as cause:
        raise InputError(f"{path} is no report of mbexport bench: {cause}; measure again") from cause


def _report(raw: dict[str, Any]) -> Report:
    parts = {
        "machine": Machine(**raw["machine"]),
        "entrants": tuple(Entrant(**entry) for entry in raw["entrants"]),
        "workloads": tuple(_workload(entry) for entry in raw["workloads"]),
        "starts": tuple(Start(**entry | {"totals": tuple(entry["totals"])}) for entry in raw["starts"]),
        "notes": tuple(raw["notes"]),
    }
    return Report(**raw | parts)


def _workload(raw: dict[str, Any]) -> WorkloadFigures:
    return WorkloadFigures(**raw | {"rows": tuple(_row(entry) for entry in raw["rows"])})


def _row(raw: dict[str, Any]) -> Row:
    agreement = None if raw["agreement"] is None else Agreement(**raw["agreement"])
    return Row(**raw | {"seconds": tuple(raw["seconds"]), "agreement": agreement})
