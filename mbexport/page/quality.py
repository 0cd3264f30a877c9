"""What ``mbexport int8`` measured, as part of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mbexport.page.document import badge, definitions, paragraphs
from mbexport.page.fields import Fields
from mbexport.page.html import Child, Html, joined, tag
from mbexport.page.tables import Column, bars, table

FEW = 12  # bars that are seen at once
SITES = "Error of each site's products"
GRAPH_COLUMNS = (
    Column("graph", figures=False), Column("gate", figures=False), Column("agreement"), Column("macro-F1"),
    Column("points lost"), Column("similarity"), Column("error"), Column("largest error"),
    Column("kept in higher precision", figures=False),
)  # fmt: skip


@dataclass(frozen=True)
class GateFacts:
    """One graph's gate; figures as ``mbexport.quantize.quality.Quality`` has them, None where there are none."""

    file: str
    passed: bool
    keep: tuple[str, ...]
    faults: tuple[str, ...]
    agreement: float | None
    f1: float | None
    f1_drop: float | None
    similarity: float | None
    error: float
    largest_error: float


@dataclass(frozen=True)
class QualityFacts:
    """A quantization report as far as a page shows it.

    Attributes:
        graphs: each with its verdict.
        ranking: names of parts and the error that each costs by itself, the costliest first.
        sites: names of sites and the errors of their products.
        calibration_texts: how many ranges were taken from.
        held_out_texts: how many the gate judged by.
        max_length: tokens that texts were cut to.
        weight_bytes: of the weights that the graphs share.
        fp32_bytes: of the FP32 graphs' weights.
        notes: what a reader should know.
    """

    graphs: tuple[GateFacts, ...]
    ranking: tuple[tuple[str, float], ...]
    sites: tuple[tuple[str, float], ...]
    calibration_texts: int
    held_out_texts: int
    max_length: int
    weight_bytes: int
    fp32_bytes: int
    notes: tuple[str, ...]

    @classmethod
    def read(cls, report: Mapping[str, Any]) -> QualityFacts:
        """Take them from a report as ``mbexport int8`` writes it.

        Raises:
            ValueError: a field is missing or of another type.
        """
        fields = Fields(report, "the report")
        return cls(
            graphs=tuple(_gate(graph) for graph in fields.many("graphs")),
            ranking=tuple((item.text("part"), item.number("error")) for item in fields.many("ranking")),
            sites=tuple(
                (site.text("name"), site.number("row_error" if site.flag("by_row") else "error"))
                for site in fields.many("sites")
            ),
            calibration_texts=fields.count("calibration_texts"),
            held_out_texts=fields.count("held_out_texts"),
            max_length=fields.count("max_length"),
            weight_bytes=fields.count("weight_bytes"),
            fp32_bytes=fields.count("fp32_bytes"),
            notes=fields.texts("notes"),
        )


def _gate(graph: Fields) -> GateFacts:
    quality = graph.one("quality")
    return GateFacts(
        file=graph.text("file"),
        passed=graph.flag("passed"),
        keep=graph.texts("keep"),
        faults=graph.texts("faults"),
        agreement=quality.optional_number("agreement"),
        f1=quality.optional_number("f1"),
        f1_drop=quality.optional_number("f1_drop"),
        similarity=quality.optional_number("similarity"),
        error=quality.number("error"),
        largest_error=quality.number("largest_error"),
    )


def quality_content(facts: QualityFacts, level: int = 2) -> Html:
    """Verdicts of the graphs, what each part costs, and the errors of the sites.

    Args:
        facts: the report.
        level: of the headings.
    """
    share = facts.weight_bytes / max(facts.fp32_bytes, 1)
    size = f"{facts.weight_bytes / 1e6:.1f} MB, {100 * share:.1f} % of FP32's"
    given = [
        ("calibrated on", f"{facts.calibration_texts} texts of up to {facts.max_length} tokens"),
        ("judged by", f"{facts.held_out_texts} other texts, against the FP32 graph"),
        ("weights", size if facts.fp32_bytes else f"{facts.weight_bytes / 1e6:.1f} MB"),
    ]
    heading = f"h{level}"
    return joined(
        (
            definitions(given),
            paragraphs(facts.notes, "note"),
            table("Gates of the graphs", GRAPH_COLUMNS, [_row(graph) for graph in facts.graphs]),
            *(_faults(graph) for graph in facts.graphs if graph.faults),
            *_ranking(facts, heading),
            tag(heading, SITES),
            tag(
                "p",
                "Root mean square error over root mean square, on sampled tokens of the calibration's texts; the "
                "largest first.",
            ),
            _bars(SITES, "site", sorted(facts.sites, key=lambda site: -site[1])),
        )
    )


def _ranking(facts: QualityFacts, heading: str) -> tuple[Child, ...]:
    if not facts.ranking:
        return (tag("p", "No graph failed its gate, so what each part costs by itself was not measured."),)
    told = (
        "Error of the outputs where it alone is quantized, in standard deviations of the outputs; the parts that "
        "graphs keep in higher precision are taken from the top."
    )
    title = "What each part costs by itself"
    return (tag(heading, title), tag("p", told), _bars(title, "part", facts.ranking))


def _bars(title: str, name: str, values: Sequence[tuple[str, float]]) -> Html:
    """The first ones; all of them behind a line that opens the list, where there are many more."""
    if len(values) <= FEW + FEW // 2:
        return bars(title, name, "error", values)
    everything = tag("details", tag("summary", f"All {len(values)}"), bars(f"{title}, all", name, "error", values))
    return joined((bars(f"{title}, the first {FEW}", name, "error", values[:FEW]), everything))


def _faults(graph: GateFacts) -> Html:
    return tag("p", tag("strong", graph.file), f": {'; '.join(graph.faults)}", class_="fault")


def _row(graph: GateFacts) -> tuple[Child, ...]:
    return (
        graph.file,
        badge(graph.passed),
        _figure(graph.agreement, "{:.2f} %"),
        _figure(graph.f1, "{:.2f} %"),
        _figure(graph.f1_drop, "{:+.2f}"),
        _figure(graph.similarity, "{:.5f}"),
        f"{graph.error:.4f}",
        f"{graph.largest_error:.4f}",
        ", ".join(graph.keep) or "nothing",
    )


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
