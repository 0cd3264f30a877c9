"""A parity report as one HTML page, with what the bundle says of its quantized graphs and its engines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mbexport import manifest as manifests
from mbexport.errors import BundleError, MbexportError
from mbexport.files import read_json
from mbexport.manifest import Engine, Manifest
from mbexport.page.document import badge, definitions, document, paragraphs, section
from mbexport.page.engines import BuildFacts, EngineFacts, engine_content
from mbexport.page.html import Child, Html, joined, tag
from mbexport.page.quality import QualityFacts, quality_content
from mbexport.page.tables import Column, table
from mbexport.parity.page_graph import cosine_text, error_text, graph_section, sentence, share_text
from mbexport.parity.report import Fault, GraphParity, OwnError, ParityReport
from mbexport.profiles import parse_profiles

QUALITY_FILE = "reports/quality-int8.json"
GRAPH_COLUMNS = (
    Column("graph", figures=False), Column("precision", figures=False), Column("verdict", figures=False),
    Column("largest error"), Column("limit"), Column("of the spread"), Column("least cosine"),
    Column("equal predictions"), Column("times PyTorch's own"),
)  # fmt: skip
NOT_RUN = (
    "No engine was run for this page, on a GPU or elsewhere. What follows is what the builders reported when the "
    "engines were built: it says nothing of the speed of an engine, nor of its answers."
)


@dataclass(frozen=True)
class Facts:
    """What stands in a bundle beside its graphs, as far as a page shows it.

    Attributes:
        quality: what ``mbexport int8`` measured; None where it did not run.
        engines: each with the report of its build.
        unreadable: reports that are there and could not be read, and why.
        command: what repeats the comparison; empty where that is not known.
    """

    quality: QualityFacts | None = None
    engines: tuple[EngineFacts, ...] = ()
    unreadable: tuple[str, ...] = ()
    command: str = ""


def facts_of(bundle: Path) -> Facts:
    """Read them; what is damaged is told, and no error.

    Args:
        bundle: a bundle; of another file or folder there are no facts.
    """
    if not (bundle / manifests.FILE_NAME).is_file():
        return Facts()
    try:
        manifest = manifests.read(bundle)
    except MbexportError as cause:
        return Facts(unreadable=(f"{manifests.FILE_NAME}: {cause}",))
    unreadable: list[str] = []
    engines = [_engine(bundle, manifest, engine, unreadable) for engine in manifest.engines]
    quality = _quality(bundle, manifest, unreadable)
    return Facts(quality, tuple(filter(None, engines)), tuple(unreadable))


def _quality(bundle: Path, manifest: Manifest, unreadable: list[str]) -> QualityFacts | None:
    """The report, if it is of the graphs that the bundle holds."""
    if not (bundle / QUALITY_FILE).exists():
        return None
    try:
        facts = QualityFacts.read(read_json(bundle / QUALITY_FILE, BundleError))
    except (MbexportError, ValueError) as cause:
        unreadable.append(f"{QUALITY_FILE}: {cause}")
        return None
    checked = {check.what: check.figures.get("error") for check in manifest.checks}
    if any(checked.get(f"quality of {graph.file}", graph.error) != graph.error for graph in facts.graphs):
        unreadable.append(f"{QUALITY_FILE}: it is of other graphs than the bundle holds now")
        return None
    return facts


def _engine(bundle: Path, manifest: Manifest, engine: Engine, unreadable: list[str]) -> EngineFacts | None:
    try:
        parse_profiles(engine.profile)
    except MbexportError as cause:
        unreadable.append(f"{manifests.FILE_NAME}, {engine.file}: {cause}")
        return None
    current, build = manifest.origin(engine) is not None, None
    try:
        build = BuildFacts.read(read_json(bundle / engine.report_file, BundleError), engine)
    except (MbexportError, ValueError) as cause:
        unreadable.append(f"{engine.report_file}: {cause}")
    return EngineFacts(engine, current, build)


@dataclass(frozen=True)
class _Part:
    """A part of the page: where links find it, what they say, and itself."""

    anchor: str
    name: str
    content: Html


def _titled(anchor: str, title: str, content: Child) -> _Part:
    return _Part(anchor, title, section(title, content, id_=anchor))


def page(report: ParityReport, facts: Facts) -> str:
    """One HTML file that needs no other, no script and no network.

    Args:
        report: what was found.
        facts: what stands in the bundle beside it; ``Facts()`` where there is none.
    """
    anchors = [f"graph-{number}" for number in range(1, len(report.graphs) + 1)]
    graphs = list(zip(report.graphs, anchors, strict=True))
    diagnosed = [graph for graph in report.graphs if graph.diagnosis is not None and not graph.passed]
    parts: list[_Part] = []
    if diagnosed:
        parts.append(_titled("diagnosis", "Where it goes wrong", joined(map(_diagnosis, diagnosed))))
    if graphs:
        parts.append(_titled("graphs", "Graphs", _graphs(graphs, report.half)))
    parts += [_Part(anchor, graph.file, graph_section(graph, anchor)) for graph, anchor in graphs]
    if facts.quality is not None:
        parts.append(_titled("int8", "Quality of the quantized graphs", _int8(facts.quality)))
    if facts.engines:
        parts.append(_titled("engines", "Engines", _engines(facts.engines)))
    parts.append(_titled("environment", "Environment", _environment(report)))
    if report.skipped:
        parts.append(_titled("skipped", "Not compared", definitions(list(report.skipped.items()))))
    if facts.unreadable:
        parts.append(_titled("unreadable", "Could not be read", paragraphs(facts.unreadable, "fault")))
    parts.append(_titled("repeat", "How to repeat this", _repeat(facts.command)))
    links = (tag("li", tag("a", part.name, href=f"#{part.anchor}")) for part in parts)
    subject = report.subject or "a bundle"
    return document(
        f"{_verdict_of(report)[1]}: parity of {subject}",
        tag(
            "header", tag("h1", f"Parity of {subject}"), _verdict(report),
            tag("nav", tag("ul", *links), aria_label="Contents"),
        ),
        *(part.content for part in parts),
    )  # fmt: skip


def _verdict_of(report: ParityReport) -> tuple[str, str, str]:
    """Its sign, word and class; nothing has passed where nothing was compared."""
    if not report.graphs and report.passed:
        return "-", "NOTHING COMPARED", "none"
    return ("✓", "PASSED", "pass") if report.passed else ("✗", "FAILED", "fail")


def _verdict(report: ParityReport) -> Html:
    sign, word, class_ = _verdict_of(report)
    count, failed = len(report.graphs), [graph for graph in report.graphs if not graph.passed]
    told = f"{count} graph{'' if count == 1 else 's'} compared"
    told += f", {len(failed)} of them wrong" if failed else ", none wrong" if count else ""
    told += f"; {len(report.skipped)} not compared" if report.skipped else ""
    faults = (tag("p", tag("strong", graph.file), ": ", _conclusion(graph)) for graph in failed)
    return tag(
        "div",
        tag("p", tag("span", sign, aria_hidden="true"), f" {word}", class_="word"),
        tag("p", f"{told}."),
        tag("p", "Reference: ", report.reference),
        *faults,
        *(tag("p", tag("strong", "Note: "), sentence(note)) for note in report.notes),
        class_=f"verdict {class_}",
    )


def _conclusion(graph: GraphParity) -> str:
    """What is wrong with a graph, in one sentence."""
    if graph.diagnosis is not None and graph.diagnosis.conclusion:
        return sentence(graph.diagnosis.conclusion)
    overall, limits, found = graph.overall, graph.limits, []
    if "max_error" in limits and not overall.max_error <= limits["max_error"]:
        found.append(
            f"its largest error is {error_text(overall.max_error)}, allowed is {error_text(limits['max_error'])}"
        )
    if "cosine" in limits and not overall.cosine >= limits["cosine"]:
        found.append(f"its least cosine is {cosine_text(overall.cosine)}, asked for is {limits['cosine']:g}")
    if "agreement" in limits and overall.agreement is not None and not overall.agreement >= limits["agreement"]:
        asked = share_text(limits["agreement"])
        found.append(f"{share_text(overall.agreement)} of its predictions are equal, asked for are {asked}")
    return f"{'; '.join(found) or 'it was judged wrong'}; where it goes wrong was not found."


def _diagnosis(graph: GraphParity) -> Html:
    """The faults of a graph, the first one first."""
    diagnosis = graph.diagnosis
    assert diagnosis is not None
    cards = [_fault(fault) for fault in diagnosis.faults]
    looked = tag("p", f"Looked at: {diagnosis.inputs}.", class_="muted") if diagnosis.inputs else None
    return section(graph.file, tag("p", sentence(diagnosis.conclusion)), *cards, looked, level=3)


def _fault(fault: Fault) -> Html:
    stages = ", ".join(fault.stages[:6]) + (f" and {len(fault.stages) - 6} more" if len(fault.stages) > 6 else "")
    left = None
    if fault.evidence is not None:
        left = f"an error of {error_text(fault.evidence)} is left where the part is computed with this very fault"
    rows: list[tuple[str, Child]] = [
        ("kind", fault.kind),
        ("first wrong part", tag("code", fault.part) if fault.part else None),
        ("cause", fault.explanation or fault.cause),
        ("evidence", left or "seen in the values, not tried out"),
        ("tokens", fault.tokens),
        ("channels", fault.channels),
    ]
    return tag("div", tag("h4", stages or "Somewhere"), definitions(rows), class_="card")


def _graphs(graphs: Sequence[tuple[GraphParity, str]], half: OwnError | None) -> Html:
    rows = [
        (
            tag("a", graph.file, href=f"#{anchor}"), graph.precision, badge(graph.passed),
            error_text(graph.overall.max_error),
            error_text(graph.limits["max_error"]) if "max_error" in graph.limits else "by stages",
            error_text(graph.overall.relative_error), cosine_text(graph.overall.cosine),
            share_text(graph.overall.agreement), _ratio(graph.ratio),
        )
        for graph, anchor in graphs
    ]  # fmt: skip
    spread = max((graph.spread for graph, _ in graphs), default=0.0)
    notes = [
        "Errors are absolute; ∞ stands for outputs that are no numbers. The spread is the largest less the smallest "
        f"of all reference outputs, {spread:.4g}. A cosine is the least of all texts, or of all tokens where each has "
        "outputs."
    ]
    if half is not None:
        agreement = "" if half.agreement is None else f", {share_text(half.agreement)} equal predictions"
        notes.append(
            f"What half precision costs PyTorch itself ({half.what}, against its own float32 run of the same inputs): "
            f"largest error {error_text(half.max_error)}, least cosine {cosine_text(half.cosine)}{agreement}. "
            "The last column has each graph's largest error over that one."
        )
    columns = GRAPH_COLUMNS if any(graph.ratio is not None for graph, _ in graphs) else GRAPH_COLUMNS[:-1]
    table_of = table("Graphs", columns, [row[: len(columns)] for row in rows])
    return joined((table_of, paragraphs(notes, "note")))


def _ratio(ratio: float | None) -> str:
    """A largest error over that of PyTorch's own half precision."""
    if ratio is None:
        return "-"
    return f"{ratio:.2f}" if math.isfinite(ratio) else "∞"


def _int8(facts: QualityFacts) -> Html:
    told = "Measured by mbexport int8 when it made the graphs, against the FP32 graph and not against PyTorch."
    return joined((tag("p", told, class_="note"), quality_content(facts, level=3)))


def _engines(engines: Sequence[EngineFacts]) -> Html:
    return joined((tag("p", tag("strong", NOT_RUN)), *map(engine_content, engines)))


def _environment(report: ParityReport) -> Html:
    rows = [
        ("reference", report.reference),
        ("inputs", f"{report.texts}; the longest input has {report.longest:,} tokens"),
        *report.environment.items(),
        ("recorded", None if report.recorded else "no: nothing was written into the bundle"),
    ]
    return definitions(rows)


def _repeat(command: str) -> Html:
    told = "BUNDLE and CHECKPOINT stand for the folders that were compared." if not command else None
    given = command or "mbexport validate BUNDLE --checkpoint CHECKPOINT --report DIR"
    return joined((tag("pre", tag("code", given)), tag("p", told, class_="muted") if told else None))
