"""A report as Markdown tables, for a README."""

from __future__ import annotations

from mbexport.bench.report import MEASURED, Report, Row, WorkloadFigures


def markdown(report: Report) -> str:
    """What was measured and where, times by workload and contender, then memory and starts."""
    machine = report.machine
    memory = "" if machine.memory_bytes is None else f", {machine.memory_bytes / 2**30:.0f} GiB"
    rate = "" if report.rate is None else f", {2e-9 * report.rate:.0f} GFLOP/s in the model's matrix products"
    head = f"{machine.cpu}, {machine.threads} of {machine.cores} cores{memory}{rate}; {report.date}."
    notes = [f"Note: {note}." for note in report.notes]
    return "\n\n".join([head, _times(report), *_memory_and_starts(report), *notes])


def _times(report: Report) -> str:
    """Milliseconds, medians; the best peer and its time over ours, and the floor's share of ours."""
    ours = report.entrants[0].name
    names = [entrant.name for entrant in report.entrants]
    lines = [["ms", "rounds", *names, "best peer", f"its time over {ours}'s", f"floor, of {ours}'s"]]
    for workload in report.workloads:
        best = workload.best_peer(report.own)
        share = workload.rows[0].floor_share
        cells = [_time(workload.row(name)) for name in names]
        lines.append(
            [
                workload.name,
                str(len(workload.rows[0].seconds)),
                *cells,
                "-" if best is None else best.contender,
                "-" if best is None or best.ratio is None else f"{best.ratio:.2f}",
                "-" if share is None else f"{100 * share:.0f} %",
            ]
        )
    return table(lines)


def _time(row: Row | None) -> str:
    if row is None or row.median is None:
        return "failed" if row is not None and row.state == "failed" else "-"
    if not row.counts:
        return "WRONG"
    return significant(1000 * row.median)


def significant(value: float) -> str:
    """Three digits, or all before the point: 0.87, 12.3, 456, 7890."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def _memory_and_starts(report: Report) -> list[str]:
    names = [entrant.name for entrant in report.entrants]
    lines = [
        [f"peak MB, {workload.name}", *(_peak(workload, name) for name in names)]
        for workload in report.workloads
        if any(row.state == MEASURED and row.peak_bytes is not None for row in workload.rows)
    ]
    starts = {start.contender: start.total for start in report.starts}
    if starts:
        totals = (starts.get(name) for name in names)
        lines.append(["first answer, s", *("-" if total is None else f"{total:.2f}" for total in totals)])
    return [table([["", *names], *lines])] if lines else []


def _peak(workload: WorkloadFigures, name: str) -> str:
    row = workload.row(name)
    return "-" if row is None or row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"


def table(lines: list[list[str]]) -> str:
    """Rows of cells as Markdown, the first as the head."""
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body])
