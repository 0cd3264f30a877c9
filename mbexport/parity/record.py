"""Reports and checks of a comparison, written where they belong."""

from __future__ import annotations

from pathlib import Path

from mbexport import manifest as manifests
from mbexport.files import to_json, write_atomically
from mbexport.manifest import Check, Manifest
from mbexport.parity.page import Facts, facts_of, page
from mbexport.parity.report import GraphParity, ParityReport

REPORT_FILE, PAGE_FILE = "parity.json", "parity.html"


def report_json(report: ParityReport) -> str:
    """The report as indented JSON."""
    return to_json(report.to_dict()) + "\n"


def write_report(folder: Path, report: ParityReport, facts: Facts) -> None:
    """The report as JSON and as a page.

    Args:
        folder: where to.
        report: what was found.
        facts: further ones for the page.

    Raises:
        OSError: the folder cannot be written.
    """
    write_atomically(folder / REPORT_FILE, report_json(report))
    write_atomically(folder / PAGE_FILE, page(report, facts))


def record(bundle: Path, manifest: Manifest, report: ParityReport) -> None:
    """Write the report, and a check for each graph that is still the one of ``manifest``, which was compared.

    Raises:
        OSError: the bundle cannot be written to.
    """
    (bundle / "reports").mkdir(exist_ok=True)
    write_report(bundle / "reports", report, facts_of(bundle))

    def checked(current: Manifest) -> Manifest:
        same = {graph.file for graph in current.graphs if graph in manifest.graphs}
        for parity in report.graphs:
            if parity.file in same and parity.limits:  # what is held to no limits proves nothing
                current = current.with_check(_check(parity, report))
        return current

    manifests.update(bundle, checked)


def _check(parity: GraphParity, report: ParityReport) -> Check:
    overall = parity.overall
    figures = {
        "max_error": overall.max_error,
        "limits": parity.limits,
        "relative_error": overall.relative_error,
        "cosine": overall.cosine,
        "agreement": overall.agreement,
        "rows": overall.rows,
        "longest": report.longest,
    }
    return Check(f"parity of {parity.file}", report.reference, figures, parity.passed)
