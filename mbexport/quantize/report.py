"""Reports of quantization: plain values for JSON, and one HTML page with its pictures inside."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mbexport.page.document import document
from mbexport.page.html import tag
from mbexport.page.quality import QualityFacts, quality_content
from mbexport.precision.calibration import FIGURES, Calibration
from mbexport.precision.strength import SiteFigures
from mbexport.quantize.quality import Limits, Quality
from mbexport.quantize.search import Sensitivity


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
    failed = [graph.file for graph in report.graphs if not graph.passed]
    sign, word, class_ = ("✓", "PASSED", "pass") if report.passed else ("✗", "FAILED", "fail")
    told = f"{len(report.graphs)} graphs judged, {f'{len(failed)} of them below a limit' if failed else 'all passed'}."
    verdict = tag(
        "div",
        tag("p", tag("span", sign, aria_hidden="true"), f" {word}", class_="word"),
        tag("p", told),
        class_=f"verdict {class_}",
    )
    title = f"INT8 of {model}"
    facts = QualityFacts.read(report.to_dict())
    return document(f"{word}: {title}", tag("header", tag("h1", title), verdict), quality_content(facts))
