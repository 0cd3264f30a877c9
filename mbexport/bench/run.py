"""A whole benchmark: every workload with every contender, then starts; the report."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path

from mbexport.bench.agreement import compare
from mbexport.bench.arithmetic import ModelSize
from mbexport.bench.contenders import Contender
from mbexport.bench.machine import this_machine
from mbexport.bench.measure import PAUSE, ROUNDS, Run, Turns, measure, rounds_for
from mbexport.bench.process import Pool, WorkerProcess
from mbexport.bench.report import (
    FAILED,
    LEFT_OUT,
    MEASURED,
    Agreement,
    Entrant,
    Report,
    Row,
    Start,
    WorkloadFigures,
    quartile_range,
    ratio_of,
)
from mbexport.bench.workloads import LONG, Workload
from mbexport.errors import ContenderError
from mbexport.files import Progress, no_progress

STEPS = 100  # of a workload, in a progress bar
STARTS = 5
ALL_WORKLOADS = "*"


def nobody(_contender: Contender, _workload: str, _longest: int) -> None:
    """A rule that leaves nobody out."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        model: how reports name the model.
        size: for the arithmetic floor.
        contenders: the first one is what the others are compared with.
        workloads: in order.
        memory: names of the workloads whose peak memory is taken; every contender starts these
            in a fresh process. ``("*",)``: all.
        tokenizer: the tokenizer.json that every contender loads at a session start.
        start: the workload of the session start; None: starts are not measured.
        rounds: of each workload; None decides by the time a run takes.
        most_rounds: by workload, where fewer than that decides are enough.
        leave_out: (contender, workload's name, tokens of its longest row) to the reason why that
            contender does not run it, None if it does; "start" for the session start.
        alone: the same arguments to whether it needs the machine for itself.
        notes: what a reader should know.
    """

    model: str
    size: ModelSize
    contenders: tuple[Contender, ...]
    workloads: tuple[Workload, ...]
    tokenizer: Path
    memory: tuple[str, ...] = (ALL_WORKLOADS,)
    start: Workload | None = None
    rounds: int | None = None
    most_rounds: Mapping[str, int] = field(default_factory=dict)
    leave_out: Callable[[Contender, str, int], str | None] = nobody
    alone: Callable[[Contender, str, int], bool | None] = nobody
    notes: tuple[str, ...] = ()

    def takes_memory(self, workload: Workload) -> bool:
        """Whether peak memory is taken on this workload."""
        return ALL_WORKLOADS in self.memory or workload.name in self.memory

    def rounds_of(self, workload: Workload) -> Callable[[float], int]:
        """Of seconds a run, how often it is repeated."""
        most = self.most_rounds.get(workload.name, max(rounds for _, rounds in ROUNDS))
        return lambda seconds: self.rounds or min(most, rounds_for(seconds))


def run_bench(plan: Plan, progress: Progress = no_progress) -> Report:
    """Measure a plan.

    A contender that cannot be loaded or run is reported as failed, the others go on.

    Args:
        plan: what to measure.
        progress: called at every turn.

    Raises:
        ContenderError: ONNX Runtime cannot compute the matrix products of the floor.
    """
    total = STEPS * (len(plan.workloads) + (plan.start is not None))
    machine = this_machine(plan.contenders[0].threads)
    raw: list[tuple[Workload, list[Run], dict[str, str]]] = []
    rates: list[float] = []  # a workload's median each
    with tempfile.TemporaryDirectory(prefix="mbexport-bench-") as folder, Pool() as pool:
        for number, workload in enumerate(plan.workloads):

            def show(what: str, share: float, before: int = STEPS * number) -> None:
                progress(before + int(STEPS * share), total, what)

            runs, left_out, rate = _run_workload(
                plan, workload, pool, Turns(Path(folder), plan.rounds_of(workload), on_turn=show)
            )
            raw.append((workload, runs, left_out))
            rates.append(rate)
        best = max(rates, default=0.0) or None
        figures = tuple(_figures(plan, *parts, best) for parts in raw)
        pool.close()
        starts = _starts(plan, Path(folder), lambda what: progress(STEPS * len(plan.workloads), total, what))
        entrants = tuple(Entrant(c.name, c.kind, c.path, pool.versions_of(c)) for c in plan.contenders)
    progress(total, total, "")
    return Report(
        date=date.today().isoformat(),
        model=plan.model,
        machine=machine,
        entrants=entrants,
        rate=best,
        workloads=figures,
        starts=starts,
        notes=(*plan.notes, *([machine.busy] if machine.busy else [])),
    )


def _run_workload(plan: Plan, workload: Workload, pool: Pool, turns: Turns) -> tuple[list[Run], dict[str, str], float]:
    """Runs, reasons of those left out by name, and the median matrix-product rate (0 without rounds)."""
    left_out: dict[str, str] = {}
    taking_part: list[Contender] = []
    for contender in plan.contenders:
        reason = plan.leave_out(contender, workload.name, workload.longest)
        if reason is None:
            taking_part.append(contender.on_padded_rows() if workload.given_padded else contender)
        else:
            left_out[contender.name] = reason
    alone = frozenset(c for c in taking_part if plan.alone(c, workload.name, workload.longest))
    if plan.takes_memory(workload) or workload.longest >= LONG:
        pool.close()
    turns = Turns(turns.folder, turns.rounds, alone, turns.on_turn)
    products, threads = plan.size.products(), plan.contenders[0].threads
    runs, rates = measure(taking_part, workload, pool, turns, lambda: pool.product_rate(products, threads))
    if workload.longest >= LONG:
        pool.close()  # their memory pools stay as large as this workload made them
    return runs, left_out, statistics.median(rates) if rates else 0.0


def _figures(
    plan: Plan, workload: Workload, runs: Sequence[Run], left_out: dict[str, str], rate: float | None
) -> WorkloadFigures:
    """Figures of a workload, contenders in the plan's order."""
    multiply_adds = plan.size.multiply_adds(workload.lengths)
    floor = multiply_adds / rate if rate else None
    by_name = {run.contender.name: run for run in runs}
    memory = plan.takes_memory(workload)
    rows = tuple(
        Row(contender.name, LEFT_OUT, left_out[contender.name])
        if contender.name in left_out
        else _row(workload, by_name[contender.name], runs[0], floor, memory=memory)
        for contender in plan.contenders
    )
    return WorkloadFigures(
        name=workload.name,
        texts=len(workload.texts),
        tokens=workload.tokens,
        longest=workload.longest,
        batch=workload.batch,
        padding=workload.padding,
        multiply_adds=multiply_adds,
        floor=floor,
        rows=rows,
    )


def _row(workload: Workload, run: Run, reference: Run, floor: float | None, *, memory: bool) -> Row:
    """Figures of one run; ``reference`` is the first contender's."""
    if run.failure is not None or not run.seconds:
        return Row(run.contender.name, FAILED, run.failure or "it was not run", tuple(run.seconds))
    median = statistics.median(run.seconds)
    return Row(
        contender=run.contender.name,
        state=MEASURED,
        seconds=tuple(run.seconds),
        median=median,
        minimum=min(run.seconds),
        spread=quartile_range(run.seconds),
        ratio=ratio_of(run.seconds, reference.seconds, paired=not run.alone),
        tokens_per_second=workload.tokens / median,
        floor_share=floor / median if floor else None,
        peak_bytes=run.peak_bytes if memory else None,
        agreement=_agreement(run, reference),
    )


def _agreement(run: Run, reference: Run) -> Agreement | None:
    """Of a run's outputs with the first contender's; wrong in any case where they are doubted."""
    if run is reference or reference.output is None:
        return None
    contender = run.contender
    found = compare(reference.outputs, reference.output, run.outputs, run.output, contender.allowed_error)
    return replace(found, wrong=True, reason=contender.doubt) if contender.doubt and not found.reason else found


def _starts(plan: Plan, folder: Path, on_turn: Callable[[str], None]) -> tuple[Start, ...]:
    """The session start of every contender, in rounds, each in fresh processes: imports, tokenizer, model, answer."""
    if plan.start is None:
        return ()
    file = folder / "start.npz"
    plan.start.save(file)
    seen: dict[str, list[tuple[float, float]]] = {contender.name: [] for contender in plan.contenders}
    reasons: dict[str, str] = {}
    failed: set[str] = set()
    for contender in plan.contenders:
        reason = plan.leave_out(contender, "start", plan.start.longest)
        if reason is not None:
            reasons[contender.name] = reason
    rounds = min(STARTS, plan.rounds or STARTS)
    for number in range(rounds):
        for contender in plan.contenders:
            if contender.name not in reasons:
                on_turn(f"start: {contender.name}, {number + 1} of {rounds}")
                try:
                    seen[contender.name].append(_start(contender, file, plan.tokenizer))
                except ContenderError as error:
                    reasons[contender.name] = str(error)
                    failed.add(contender.name)
    return tuple(_start_figures(name, runs, reasons.get(name), name in failed) for name, runs in seen.items())


def _start(contender: Contender, workload: Path, tokenizer: Path) -> tuple[float, float]:
    """(seconds until the first answer, of which loading) of a fresh process."""
    time.sleep(PAUSE)
    worker = WorkerProcess()
    try:
        load = worker.ask(do="load", contender=asdict(contender), tokenizer=str(tokenizer))["seconds"]
        first = worker.ask(do="run", workload=str(workload), again_below=0, outputs=None)["seconds"]
    finally:
        worker.close()
    return load + first, load


def _start_figures(name: str, runs: Sequence[tuple[float, float]], reason: str | None, failed: bool) -> Start:
    if reason is not None:
        return Start(name, reason=reason, failed=failed)
    totals = tuple(total for total, _ in runs)
    return Start(name, statistics.median(totals), statistics.median(load for _, load in runs), totals)
