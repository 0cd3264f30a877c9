"""A parity report in the terminal: verdict first, then figures, then where a graph goes wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mbexport.cli.console import facts, printable, table

if TYPE_CHECKING:
    from mbexport.parity.report import Diagnosis, Fault, Figures, GraphParity, OwnError, ParityReport, StageError

NAMED = 2  # stages of a fault that are named; of more, how many there are
AROUND = 1  # stages before and behind a faulty one that are shown with it
DISAGREEMENTS, TEXT = 3, 60  # shown of a graph, and characters of each text


def parity_text(report: ParityReport, *, all_stages: bool = False) -> str:
    """Verdict first, then a table per graph and what was found in it.

    Args:
        report: the report.
        all_stages: show every stage of a model, not only those around faults.
    """
    lines = [_verdict(report), "", facts(_facts(report))]
    for graph in report.graphs:
        lines += ["", *_graph_lines(graph, all_stages=all_stages)]
    if report.skipped:
        lines += ["", *(f"{file}: not compared: {reason}" for file, reason in report.skipped.items())]
    return "\n".join(lines)


def _verdict(report: ParityReport) -> str:
    """One line: passed or failed, what; and a line for each graph that failed, with what is behind it."""
    judged = [graph for graph in report.graphs if graph.limits or (graph.diagnosis and graph.diagnosis.stages)]
    failed = [graph for graph in report.graphs if not graph.passed]
    against = "PyTorch" if "torch" in report.environment else report.reference
    count = len({graph.file for graph in (*judged, *failed)})
    graphs = f"{count} graph{'s' if count != 1 else ''} of {report.subject or 'the bundle'} against {against}"
    others = len(report.graphs) - count
    more = f"; {others} more compared, not judged" if others else ""
    if not count:
        return f"NOT JUDGED: quantized graphs of {report.subject}, compared with {against}, are held to no limits"
    if not failed:
        return f"PASSED: {graphs}{more}"
    lines = [f"FAILED: {len(failed)} of {graphs}{more}"]
    lines += [f"  {graph.file}: {_reason(graph)}" for graph in failed]
    return "\n".join(lines)


def _reason(graph: GraphParity) -> str:
    if graph.diagnosis is not None:
        return graph.diagnosis.conclusion
    return _against_limits(graph)


def _facts(report: ParityReport) -> list[tuple[str, str]]:
    rows = [("reference", report.reference), ("inputs", f"{report.texts}, and every length that could be special")]
    if report.half is not None:
        rows.append(("half precision", _own(report.half)))
    if report.environment:
        names = ("cpu", "platform", "onnxruntime", "mbexport", "date")
        known = [(name, report.environment[name]) for name in names if name in report.environment]
        words = [value if name in ("cpu", "platform", "date") else f"{name} {value}" for name, value in known]
        rows.append(("environment", ", ".join(words)))
    rows += [("note", message) for message in report.notes]
    return rows


def _own(half: OwnError) -> str:
    agreement = "" if half.agreement is None else f", {100 * half.agreement:.2f} % equal predictions"
    return f"PyTorch's own is off by {half.max_error:.1e}, cosine {half.cosine:.6f}{agreement} ({half.what})"


def _graph_lines(graph: GraphParity, *, all_stages: bool) -> list[str]:
    verdict = "passed" if graph.passed else "FAILED"
    if not graph.limits and graph.passed:
        verdict = "nothing broken found" if graph.diagnosis and graph.diagnosis.stages else "compared, not judged"
    lines = [f"{graph.file}: {verdict}, {_against_limits(graph)}"]
    header = ("", "rows", "largest error", "of the spread", "cosine", "equal predictions")
    groups = {"all": graph.overall}
    groups |= {f"length {name}": figures for name, figures in graph.by_length.items()}
    groups |= {f"padding {name}": figures for name, figures in graph.by_padding.items()}
    lines.append(table([header, *(_figures_row(name, figures) for name, figures in groups.items())]))
    if graph.disagreeing:
        lines += ["", *_disagreement_lines(graph)]
    if graph.diagnosis is not None:
        lines += ["", *_diagnosis_lines(graph, graph.diagnosis, all_stages=all_stages)]
    return lines


def _against_limits(graph: GraphParity) -> str:
    """What was asked of a graph, and what was found."""
    overall, limits = graph.overall, graph.limits
    found = f"largest error {overall.max_error:.1e}"
    parts = [f"{found}, limit {limits['max_error']:.1e}" if "max_error" in limits else f"{found}, {graph.precision}"]
    if graph.ratio is not None:
        parts[0] += f" ({graph.ratio:.2f} of PyTorch's own in half precision)"
    if "cosine" in limits:
        parts.append(f"cosine {overall.cosine:.6f}, at least {limits['cosine']:.6f}")
    if "agreement" in limits and overall.agreement is not None:
        parts.append(f"{100 * overall.agreement:.2f} % equal predictions, at least {100 * limits['agreement']:.2f} %")
    return "; ".join(parts)


def _figures_row(name: str, figures: Figures) -> tuple[str, ...]:
    agreement = "-" if figures.agreement is None else f"{100 * figures.agreement:.1f} %"
    errors = (f"{figures.max_error:.1e}", f"{figures.relative_error:.1e}")
    return (name, str(figures.rows), *errors, f"{figures.cosine:.9f}", agreement)


def _disagreement_lines(graph: GraphParity) -> list[str]:
    shown = graph.disagreements[:DISAGREEMENTS]
    more = f"; the first {len(shown)}" if graph.disagreeing > len(shown) else ""
    lines = [f"{graph.disagreeing} prediction{'s are' if graph.disagreeing != 1 else ' is'} another{more}:"]
    for item in shown:
        text = "" if item.text is None else f", {_printable(item.text)!r}"
        token = "" if item.token is None else f", token {item.token}"
        where = f"{item.length} tokens, padding {item.padding}{token}{text}"
        lines.append(f"  {item.found} in the place of {item.expected} (ahead by {item.margin:.1e}): {where}")
    return lines


def _printable(text: str) -> str:
    """A text's beginning, without what a terminal would obey."""
    words = printable(" ".join(text.split()))
    return words if len(words) <= TEXT else f"{words[: TEXT - 3]}..."


def _diagnosis_lines(graph: GraphParity, diagnosis: Diagnosis, *, all_stages: bool) -> list[str]:
    lines = [f"looked at: {diagnosis.inputs}"]
    if graph.passed:  # else it is the verdict's reason
        lines.append(f"found: {diagnosis.conclusion}")
    for fault in diagnosis.faults:
        lines += ["", *_fault_lines(fault, diagnosis.stages)]
    if diagnosis.stages:
        shown = diagnosis.stages if all_stages else _around_faults(diagnosis.stages)
        if shown:
            lines += ["", _stage_table(shown)]
    return lines


def _fault_lines(fault: Fault, stages: Sequence[StageError]) -> list[str]:
    part = "" if fault.part == fault.stages[0] else f", first in {fault.part}"
    rows = [("where", f"{_stages_text(fault, stages)}{part}"), ("what", f"{fault.cause}: {fault.explanation}")]
    if fault.evidence is not None:
        rows.append(("evidence", f"computed with that fault, an error of {fault.evidence:.1e} is left"))
    rows += [("tokens", fault.tokens), ("channels", fault.channels)]
    return facts([(f"  {name}", value) for name, value in rows if value]).split("\n")


def _stages_text(fault: Fault, stages: Sequence[StageError]) -> str:
    """E.g. ``layers.1.attn, layers.2.attn and 3 more (local attention, all 5)``."""
    names = list(fault.stages)
    named = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    if names == [fault.kind]:
        return named
    of_kind = Counter(stage.kind for stage in stages)[fault.kind]
    share = "" if of_kind < 2 else f", all {of_kind}" if of_kind == len(names) else f", {len(names)} of {of_kind}"
    return f"{named} ({fault.kind}{share})"


def _around_faults(stages: Sequence[StageError]) -> list[StageError | None]:
    """Faulty stages with their neighbours; None where some were left out."""
    near = {
        other
        for number, stage in enumerate(stages)
        if stage.faulty
        for other in range(number - AROUND, number + AROUND + 1)
        if 0 <= other < len(stages)
    }
    shown: list[StageError | None] = []
    for number in sorted(near):
        if number and number - 1 not in near:
            shown.append(None)
        shown.append(stages[number])
    return [*shown, None] if near and max(near) < len(stages) - 1 else shown


def _stage_table(stages: Sequence[StageError | None]) -> str:
    header = ("stage", "kind", "own error", "accumulated", "")
    return table([header, *map(_stage_row, stages)])


def _stage_row(stage: StageError | None) -> tuple[str, ...]:
    if stage is None:
        return ("...", "", "", "", "")
    mark = "<- wrong" if stage.faulty else "ok"
    return (stage.name, stage.kind, f"{stage.own:.1e}", f"{stage.accumulated:.1e}", mark)
