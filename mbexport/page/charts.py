"""Charts as SVG in a page: places across are shares of the width, so that letters keep their size on every screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from mbexport.page.axes import Axis
from mbexport.page.html import Child, Html, joined, tag

HEIGHT = 260  # of the plot, in pixels of CSS; its width is the page's
SHAPES = {
    "circle": '<circle r="4.2"/>',
    "square": '<path d="M-3.9-3.9h7.8v7.8h-7.8z"/>',
    "up": '<path d="M0-5L4.9 3.7H-4.9z"/>',
    "down": '<path d="M0 5L4.9-3.7H-4.9z"/>',
    "diamond": '<path d="M0-5.4L4.7 0 0 5.4-4.7 0z"/>',
}
# The shapes stand once in a document; charts and legends refer to them.
SPRITE = Html(
    '<svg class="sprite" aria-hidden="true" width="0" height="0"><defs>'
    + "".join(f'<g id="{name}">{shape}</g>' for name, shape in SHAPES.items())
    + "</defs></svg>"
)


@dataclass(frozen=True)
class Kind:
    """What is told apart: its name, the shape and the colour (1 to 5, see style.css) of its marks.

    ``aside``: pixels that marks stand to the right of their place, so that kinds do not hide one another.
    """

    name: str
    shape: str
    colour: int
    aside: int = 0


@dataclass(frozen=True)
class Mark:
    """A value: its place on both axes, and what is said of it where one points at it."""

    x: float
    y: float
    hint: str


class Chart:
    """A chart that parts are drawn into, the first one lowest.

    Args:
        x: the axis from left to right.
        y: the axis upwards.
    """

    def __init__(self, x: Axis, y: Axis) -> None:
        self._x, self._y = x, y
        self._parts: list[Html] = []
        self._legend: list[Html] = []

    def marks(self, kind: Kind, marks: Sequence[Mark]) -> None:
        """A mark for each value; those that fall together are one, whose hint counts the others."""
        places: dict[tuple[str, str], list[str]] = {}
        for mark in marks:
            places.setdefault((self._across(mark.x), self._down(mark.y)), []).append(mark.hint)
        shown = (
            tag(
                "use",
                tag("title", hints[0] + (f", and {len(hints) - 1} more here" if len(hints) > 1 else "")),
                href=f"#{kind.shape}", x=x, y=y,
            )
            for (x, y), hints in places.items()
        )  # fmt: skip
        moved = f"translate({kind.aside})" if kind.aside else None
        self._parts.append(tag("g", *shown, class_=f"mark c{kind.colour}", transform=moved))
        key = tag("svg", tag("use", href=f"#{kind.shape}", x=7, y=7), class_=f"mark c{kind.colour}", aria_hidden="true")
        self._legend.append(tag("li", key, kind.name))

    def line(self, name: str, class_: str, points: Sequence[tuple[float, float]]) -> None:
        """A line through points; ``class_`` is of style.css."""
        for (x1, y1), (x2, y2) in pairwise(points):
            self._segment(class_, self._across(x1), self._down(y1), self._across(x2), self._down(y2))
        self._key(name, class_)

    def dashes(self, name: str, class_: str, levels: Sequence[float]) -> None:
        """A level for each thing of an ordered axis, as wide as its place."""
        number = 0
        for level, same in groupby(levels):
            first, number = number, number + len(list(same))
            y = self._down(level)
            self._segment(class_, self._across(first - 0.5), y, self._across(number - 0.5), y)
        self._key(name, class_)

    def level(self, name: str, value: float, *, across: bool = True) -> None:
        """A limit: a line through the whole chart at a value of the y axis, or, not ``across``, of the x axis."""
        if across:
            self._segment("limit", "0%", self._down(value), "100%", self._down(value))
        else:
            self._segment("limit", self._across(value), "0", self._across(value), str(HEIGHT))
        self._key(name, "limit")

    def column(self, number: int) -> None:
        """Mark the place of one thing of an ordered axis as wrong."""
        width = 100 / (self._x.high - self._x.low)
        x = self._across(number - 0.5)
        self._parts.append(tag("rect", x=x, y=0, width=f"{width:.2f}%", height=HEIGHT, class_="wrong"))

    def column_key(self, name: str) -> None:
        """What a marked place means."""
        self._legend.append(tag("li", tag("span", class_="key wrong", aria_hidden="true"), name))

    def bar(self, low: float, high: float, value: float, hint: str) -> None:
        """A bar between two values of the x axis, up to a value of the y axis."""
        x, width = self._x.place(low), self._x.place(high) - self._x.place(low)
        height = HEIGHT * self._y.place(value)
        self._parts.append(
            tag(
                "rect", tag("title", hint), x=f"{100 * x:.2f}%", y=f"{HEIGHT - height:.1f}",
                width=f"{100 * width:.2f}%", height=f"{height:.1f}", class_="bar",
            )
        )  # fmt: skip

    def figure(self, title: str, description: str, note: Child = None) -> Html:
        """The chart with its title and legend.

        Args:
            title: what it shows.
            description: what is to be seen, for those who do not see it.
            note: how to read it.
        """
        picture = tag(
            "svg", tag("title", title), tag("desc", description), self._frame(), *self._parts,
            class_="plot", role="img", aria_label=f"{title}. {description}", height=HEIGHT,
        )  # fmt: skip
        legend = tag("ul", *self._legend, class_="legend") if self._legend else None
        caption = tag("figcaption", tag("strong", title), tag("span", note) if note else None)
        return tag("figure", caption, legend, picture)

    def _frame(self) -> Html:
        """Grid, ticks and the axes' labels."""
        rows = (
            joined(
                (
                    tag("line", x1=0, x2="100%", y1=y, y2=y, class_="grid"),
                    tag("text", tick.text, x=-8, y=y, dy="0.35em", text_anchor="end"),
                )
            )
            for tick in self._y.ticks
            for y in (f"{HEIGHT * (1 - tick.place):.1f}",)
        )
        columns = (
            tag(
                "text", tick.text, x=f"{100 * tick.place:.2f}%", y=HEIGHT + 18, text_anchor="middle",
                class_="minor" if tick.minor else None,
            )
            for tick in self._x.ticks
        )  # fmt: skip
        labels = (
            tag("text", self._y.label, x=-48, y=-12, class_="label"),
            tag("text", self._x.label, x="100%", y=HEIGHT + 38, text_anchor="end", class_="label"),
        )
        base = tag("line", x1=0, x2="100%", y1=HEIGHT, y2=HEIGHT, class_="axis")
        return joined((*rows, base, *columns, *labels))

    def _key(self, name: str, class_: str) -> None:
        stroke = tag("line", x1=0, x2=18, y1=7, y2=7, class_=class_)
        self._legend.append(tag("li", tag("svg", stroke, class_="stroke", aria_hidden="true"), name))

    def _segment(self, class_: str, x1: str, y1: str, x2: str, y2: str) -> None:
        self._parts.append(tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_))

    def _across(self, value: float) -> str:
        return f"{100 * self._x.place(value):.1f}%"

    def _down(self, value: float) -> str:
        return f"{HEIGHT * (1 - self._y.place(value)):.0f}"
