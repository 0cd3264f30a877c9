"""A report as pictures: ratios, time against length, memory. matplotlib is imported when one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbexport.bench.report import Report, Row, WorkloadFigures
from mbexport.optional import require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FORMAT = "svg"
OURS = "#111111"
PART_COLOURS = {
    "matrix products": "#4c78a8",
    "global attention": "#e45756",
    "local attention": "#f2a541",
    "other": "#b8b8b8",
}


def check_matplotlib() -> None:
    """Find out before any work whether pictures can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib")


def draw(report: Report, folder: Path, prefix: str = "") -> list[Path]:
    """Write ``ratio``, ``length`` and ``memory`` as SVG; those without any figure are left out.

    Args:
        report: what was measured.
        folder: an existing directory.
        prefix: of the file names.

    Returns:
        The files written.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "mbexport", "font.size": 9, "axes.spines.top": False}):
        figures = {"ratio": _ratios(report), "length": _lengths(report), "memory": _memory(report)}
        written = []
        for name, figure in figures.items():
            if figure is not None:
                path = folder / f"{prefix}{name}.{FORMAT}"
                figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
                written.append(path)
    return written


def _new_figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of its own, no global state of pyplot's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    axes.spines["right"].set_visible(False)
    return figure, axes


def _colours(report: Report) -> dict[str, Any]:
    """A colour per contender, ours black."""
    from matplotlib import colormaps

    names = [entrant.name for entrant in report.entrants]
    return {name: OURS if n == 0 else colormaps["tab10"]((n - 1) % 10) for n, name in enumerate(names)}


def _bars(report: Report, value_of: Callable[[Row], float | None], bar_width: float, label: str) -> Any:
    """A group of bars per workload, a bar per contender that has a value; None where nobody has any."""
    found = [
        (workload.name, {row.contender: value for row in workload.rows if (value := value_of(row)) is not None})
        for workload in report.workloads
    ]
    groups = [(name, values) for name, values in found if values]
    if not groups:
        return None
    figure, axes = _new_figure(max(5.0, bar_width * sum(len(values) for _, values in groups)), 3.8)
    labelled: set[str] = set()
    colours = _colours(report)
    place = 0.0
    ticks = []
    for _, values in groups:
        ticks.append(place + (len(values) - 1) / 2)
        for name, value in values.items():
            axes.bar(place, value, 0.9, color=colours[name], label=None if name in labelled else name)
            labelled.add(name)
            place += 1
        place += max(1.2, 4.2 - len(values))  # room for a group's name
    axes.set_xticks(ticks, [name for name, _ in groups], rotation=30, ha="right")
    axes.set_ylabel(label)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _ratios(report: Report) -> Any:
    """Each peer's time over ours; above 1, ours is faster."""
    ours = report.entrants[0].name
    figure = _bars(
        report,
        lambda row: row.ratio if row.counts and row.contender != ours else None,
        0.16,
        f"time of a peer over {ours}'s",
    )
    if figure is not None:
        figure.axes[0].axhline(1, color=OURS, linewidth=0.8)
    return figure


def _memory(report: Report) -> Any:
    """Peak resident memory, where it was taken."""
    return _bars(
        report,
        lambda row: None if row.peak_bytes is None else row.peak_bytes / 1e9,
        0.2,
        "peak resident memory, GB",
    )


def _lengths(report: Report) -> Any:
    """Time of one text against its length; below our line, what the time goes to."""
    single = [w for w in report.workloads if w.texts == 1 and w.padding == "none"]
    single.sort(key=lambda workload: workload.longest)
    if len(single) < 2:
        return None
    figure, axes = _new_figure(6.5, 4.2)
    for name, colour in _colours(report).items():
        points = _points(single, name)
        if points:
            first = name == report.entrants[0].name
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name, linewidth=2.2 if first else 1.1)
    floors = [(w.longest, 1000 * w.floor) for w in single if w.floor is not None]
    if floors:
        axes.plot(*zip(*floors, strict=True), ":", color="#777777", label="arithmetic floor")
    for part, colour in PART_COLOURS.items():
        points = [(w.longest, 1000 * report.parts[w.name][part]) for w in single if w.name in report.parts]
        if points:
            axes.plot(*zip(*points, strict=True), "s--", color=colour, markersize=3, label=f"of ours: {part}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([w.longest for w in single], [str(w.longest) for w in single])
    axes.set_xlabel("tokens of one text")
    axes.set_ylabel("ms")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _points(workloads: Sequence[WorkloadFigures], name: str) -> list[tuple[int, float]]:
    """(tokens, ms) of a contender where its figures count."""
    rows = [(workload.longest, workload.row(name)) for workload in workloads]
    return [(length, 1000 * row.median) for length, row in rows if row and row.counts and row.median is not None]
