"""The figures of benchmarks/results/int8.json as Markdown tables. Standard library only.

``python -m benchmarks.int8.tables`` prints those of the README and those of NOTES.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent.parent / "results/int8.json"


def quality_table() -> str:
    """Predictions that stay the same, and macro-F1 that is lost, by checkpoint and graph; sizes."""
    result = _load()
    sets = _of(result, "quality")
    graphs = list(next(iter(sets[0]["figures"].values())))
    rows = []
    for given in sets:
        for kind, figures in given["figures"].items():
            name = given["name"] if kind == "as trained" else f"{given['name']}, {kind}"
            cells = [f"{row['agreement']:.1f} / {_points(row['f1_drop'])}" for row in figures.values()]
            rows.append([name, str(next(iter(figures.values()))["texts"]), *cells])
    sizes = [_share(figures[graph]["size_share"] for given in sets for figures in given["figures"].values())
             for graph in graphs]  # fmt: skip
    return _with_head(result, [["", "texts", *graphs], *rows, ["bytes, of FP32's", "", *sizes]])


def speed_table() -> str:
    """Milliseconds, and each time over our FP32 one's, by contender and shape; memory, the first answer."""
    result = _load()
    report = result["figures"]["speed"]
    shapes = [workload["name"] for workload in report["workloads"]]
    starts = {start["contender"]: start["total"] for start in report["starts"]}
    peaks = {
        row["contender"]: row["peak_bytes"] for workload in report["workloads"] for row in workload["rows"]
        if row["peak_bytes"] is not None
    }  # fmt: skip
    lines = [["ms (of our FP32 time)", *shapes, "peak, MB", "first answer, s"]]
    for name, cells in _times(report).items():
        peak = f"{peaks[name] / 1e6:.0f}" if name in peaks else "-"
        start = f"{starts[name]:.2f}" if starts.get(name) else "-"
        lines.append([name, *cells, peak, start])
    return _with_head(result, lines, report["machine"], report["date"])


def operators_table() -> str:
    """Milliseconds of whole graphs, and each time over FP32's, by operator."""
    result = _load()
    report = result["figures"]["operators"]
    shapes = [workload["name"] for workload in report["workloads"]]
    lines = [["ms (of FP32's)", *shapes], *([name, *cells] for name, cells in _times(report).items())]
    return _with_head(result, lines, report["machine"], report["date"])


def ranges_table() -> str:
    """Error of the logits in percent of their standard deviation, and agreement, by way and checkpoint."""
    result = _load()
    sets = _of(result, "ranges")
    columns = [(given, graph) for given in sets for graph in ("TensorRT", "CPU")]
    lines = [["error, % / equal predictions, %", *(f"{given['name']}, {graph}" for given, graph in columns)]]
    for way in sets[0]["figures"]:
        found = [given["figures"][way].get(graph) for given, graph in columns]
        lines.append([way, *("-" if f is None else f"{100 * f['error']:.1f} / {f['agreement']:.1f}" for f in found)])
    return _with_head(result, lines)


def _load() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(RESULT.read_text("utf-8"))
    return result


def _of(result: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [figures for name, figures in result["figures"].items() if name.startswith(f"{kind}-")]


def _times(report: dict[str, Any]) -> dict[str, list[str]]:
    """A cell per workload, by contender."""
    cells: dict[str, list[str]] = {entrant["name"]: [] for entrant in report["entrants"]}
    for workload in report["workloads"]:
        for row in workload["rows"]:
            if row["median"] is None:
                cells[row["contender"]].append(row["state"])
            else:
                cells[row["contender"]].append(f"{1000 * row['median']:.1f} ({row['ratio']:.2f})")
    return cells


def _points(drop: float) -> str:
    """Points of macro-F1, a gain as a negative loss; never -0.0."""
    return f"{round(drop, 1) + 0.0:.1f}"


def _share(shares: Iterable[float]) -> str:
    found = list(shares)
    low, high = (f"{100 * end(found):.0f}" for end in (min, max))
    return f"{low} %" if low == high else f"{low}-{high} %"


def _with_head(
    result: dict[str, Any], lines: list[list[str]], machine: dict[str, Any] | None = None, day: str | None = None
) -> str:
    where = (
        result["machine"] if machine is None else f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
    )
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([f"{where}; {day or result['date']}.", "", head, "|" + "---|" * len(lines[0]), *body])


def main() -> None:
    """Print all."""
    for table in (quality_table, speed_table, operators_table, ranges_table):
        print(f"{(table.__doc__ or '').splitlines()[0]}\n\n{table()}\n")


if __name__ == "__main__":
    main()
