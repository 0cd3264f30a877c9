"""A report as a page. A placeholder, until the page itself is here."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from mbexport.parity.report import ParityReport


def page(report: ParityReport, facts: Mapping[str, Any]) -> str:
    """One HTML document."""
    verdict = "PASSED" if report.passed else "FAILED"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{verdict}</title><h1>{verdict}: {escape(report.subject)}</h1><!-- {len(facts)} -->\n"
    )
