"""Tables, and bars in tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mbexport.page.html import Child, Html, tag, text

LONG = 14  # letters of a name that gets room for them, and is broken only where there is none


@dataclass(frozen=True)
class Column:
    """A column: its heading, and whether it holds figures, which stand to the right."""

    name: str
    figures: bool = True


def table(label: str, columns: Sequence[Column], rows: Sequence[Sequence[Child]]) -> Html:
    """A table in a box that scrolls by itself where the screen is narrower.

    Args:
        label: what it shows, for screen readers.
        columns: the first one names its row.
        rows: cells, as many as there are columns.
    """
    head = tag("tr", *(tag("th", column.name, scope="col", class_=_class(column)) for column in columns))
    body = (
        tag(
            "tr",
            tag("th", row[0], scope="row", class_="long" if len(text(row[0] or "")) > LONG else None),
            *(tag("td", cell, class_=_class(column)) for column, cell in zip(columns[1:], row[1:], strict=True)),
        )
        for row in rows
    )
    return _scrolling(label, tag("table", tag("thead", head), tag("tbody", *body)))


def bars(label: str, names: str, unit: str, values: Sequence[tuple[str, float]]) -> Html:
    """A bar for each value, as long as it is large; the figure stands beside it.

    Args:
        label: what it shows, for screen readers.
        names: the heading of the names.
        unit: the heading of the values.
        values: none below 0.
    """
    finite = [value for _, value in values if math.isfinite(value)]
    longest = max(finite, default=0.0) or 1.0
    head = tag("tr", tag("th", names, scope="col"), tag("th", unit, scope="col", colspan=2))
    body = (
        tag(
            "tr",
            tag("th", name, scope="row"),
            tag("td", f"{value:.4g}", class_="n"),
            tag("td", tag("span", style=f"width:{_percent(value, longest)}%"), class_="bar", aria_hidden="true"),
        )
        for name, value in values
    )
    return _scrolling(label, tag("table", tag("thead", head), tag("tbody", *body), class_="bars"))


def _percent(value: float, longest: float) -> str:
    return f"{100 * value / longest if math.isfinite(value) else 100:.1f}"


def _class(column: Column) -> str | None:
    return "n" if column.figures else None


def _scrolling(label: str, content: Html) -> Html:
    """A box that the keyboard reaches, so that it can be scrolled without a mouse."""
    return tag("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)
