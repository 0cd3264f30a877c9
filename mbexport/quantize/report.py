"""Reports of quantization: plain values for JSON, and one HTML page with its pictures inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from mbexport.precision.calibration import FIGURES, Calibration
from mbexport.precision.strength import SiteFigures
from mbexport.quantize.quality import Limits, Quality
from mbexport.quantize.search import Sensitivity

BAR, LABEL, ROW = 420, 190, 16  # pixels of a picture: the longest bar, the names, the height of a row


@dataclass(frozen=True)
class GraphReport:
    """One graph: its file, the verdict, the parts it keeps in higher precision, the figures, and what was wrong."""

    file: str
    passed: bool
    keep: tuple[str, ...]
    quality: Quality
    faults: tuple[str, ...]


@dataclass(frozen=True)
class _Named:
    name: str


@dataclass(frozen=True)
class SiteReport(SiteFigures, _Named):  # a dataclass begins with the fields of its last base: the name
    """One site: its name, and what was chosen for it, without the factors."""


@dataclass(frozen=True)
class QuantizationReport:
    """What ``mbexport int8`` made and measured.

    Attributes:
        passed: whether all graphs passed their gates.
        graphs: each with its verdict.
        sites: smoothing and ranges.
        ranking: what each part costs by itself, the costliest first; empty where no graph failed.
        calibration_texts: how many ranges were taken from.
        held_out_texts: how many the gate judged by.
        max_length: tokens that texts were cut to.
        limits: of the gate.
        weight_bytes: of the weights that the graphs share.
        fp32_bytes: of the FP32 graphs' weights.
        notes: what a reader should know.
    """

    passed: bool
    graphs: tuple[GraphReport, ...]
    sites: tuple[SiteReport, ...]
    ranking: tuple[Sensitivity, ...]
    calibration_texts: int
    held_out_texts: int
    max_length: int
    limits: Limits
    weight_bytes: int
    fp32_bytes: int
    notes: tuple[str, ...]

    @property
    def weight_share(self) -> float:
        """Bytes of the weights over those of the FP32 graphs."""
        return self.weight_bytes / max(self.fp32_bytes, 1)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return asdict(self)


def site_reports(calibration: Calibration) -> tuple[SiteReport, ...]:
    """Of all sites of a calibration."""
    return tuple(
        SiteReport(name, **{figure: getattr(choice, figure) for figure in FIGURES})
        for name, choice in calibration.sites.items()
    )


def page(report: QuantizationReport, model: str) -> str:
    """The report as one HTML page that needs no other file.

    Args:
        report: the report.
        model: its name.
    """
    graphs = "".join(_graph_row(graph) for graph in report.graphs)
    notes = "".join(f"<p>{escape(note)}</p>" for note in report.notes)
    errors = bars([(site.name, site.row_error if site.by_row else site.error) for site in report.sites])
    scanned = ""
    if report.ranking:
        scanned = (
            "<h2>What each part costs by itself</h2><p>Error of the outputs where it alone is quantized, "
            "in standard deviations of the outputs; the parts that graphs keep in higher precision are "
            f"taken from the top.</p>{bars([(item.part, item.error) for item in report.ranking])}"
        )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>INT8 of {escape(model)}</title>'
        "<style>body{font:14px sans-serif;margin:2em}td,th{text-align:left;padding:2px 12px 2px 0}</style>"
        f"<h1>INT8 of {escape(model)}</h1><p>{report.calibration_texts} texts for calibration, "
        f"{report.held_out_texts} others to judge by, up to {report.max_length} tokens; weights "
        f"{report.weight_bytes / 1e6:.1f} MB, {report.weight_share:.1%} of FP32's.</p>{notes}"
        "<table><tr><th>graph<th>gate<th>agreement<th>macro-F1<th>similarity<th>error<th>kept in higher precision</tr>"
        f"{graphs}</table>{scanned}<h2>Error of each site's products</h2><p>Root mean square error over root mean "
        f"square, on sampled tokens of the calibration's texts.</p>{errors}</html>\n"
    )


def _graph_row(graph: GraphReport) -> str:
    quality = graph.quality
    cells = (
        graph.file,
        "passed" if graph.passed else f"failed: {'; '.join(graph.faults)}",
        _figure(quality.agreement, "{:.2f} %"),
        _figure(quality.f1, "{:.2f}") + _figure(quality.f1_drop, " ({:+.2f} lost)"),
        _figure(quality.similarity, "{:.5f}"),
        f"{quality.error:.4f}",
        ", ".join(graph.keep) or "none",
    )
    return "<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells) + "</tr>"


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def bars(values: Sequence[tuple[str, float]]) -> str:
    """A picture (SVG) of named values, a bar each."""
    longest = max(value for _, value in values) or 1.0
    rows = "".join(
        f'<text x="0" y="{ROW * row + 12}">{escape(name)}</text>'
        f'<rect x="{LABEL}" y="{ROW * row + 3}" width="{BAR * value / longest:.1f}" height="{ROW - 5}" fill="#4878a8"/>'
        f'<text x="{LABEL + BAR * value / longest + 6:.1f}" y="{ROW * row + 12}">{value:.4g}</text>'
        for row, (name, value) in enumerate(values)
    )
    size = f'width="{LABEL + BAR + 90}" height="{ROW * len(values)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-size="11" font-family="sans-serif">{rows}</svg>'
