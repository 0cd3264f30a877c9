"""Reports and checks of a comparison, written where they belong."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbexport import manifest as manifests
from mbexport.errors import BundleError
from mbexport.files import read_json, to_json, write_atomically
from mbexport.manifest import Check, Manifest
from mbexport.parity.page import page
from mbexport.parity.report import GraphParity, ParityReport

REPORT_FILE, PAGE_FILE = "parity.json", "parity.html"
QUALITY = "reports/quality-int8.json"


def report_json(report: ParityReport) -> str:
    """The report as indented JSON."""
    return to_json(report.to_dict()) + "\n"


def write_report(folder: Path, report: ParityReport, facts: Mapping[str, Any]) -> None:
    """The report as JSON and as a page.

    Args:
        folder: where to.
        report: what was found.
        facts: further ones for the page, as :func:`facts_of` gives them.

    Raises:
        OSError: the folder cannot be written.
    """
    write_atomically(folder / REPORT_FILE, report_json(report))
    write_atomically(folder / PAGE_FILE, page(report, facts))


def facts_of(subject: Path) -> dict[str, Any]:
    """What else is known of a bundle, for the page; empty for what is none.

    ``manifest``: the bundle's; ``quality``: the report of ``mbexport int8``; ``engines``: the reports of builds, by
    the engine's file.
    """
    if not (subject / manifests.FILE_NAME).is_file():
        return {}
    facts: dict[str, Any] = {"manifest": read_json(subject / manifests.FILE_NAME, BundleError)}
    if (subject / QUALITY).is_file():
        with contextlib.suppress(BundleError):  # a page of a proof does not fail for another report
            facts["quality"] = read_json(subject / QUALITY, BundleError)
    engines = {}
    for engine in facts["manifest"].get("engines", []):
        path = subject / "reports" / f"engine-{Path(str(engine.get('file'))).stem}.json"
        if path.is_file():
            with contextlib.suppress(BundleError):
                engines[str(engine["file"])] = read_json(path, BundleError)
    return facts | ({"engines": engines} if engines else {})


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
