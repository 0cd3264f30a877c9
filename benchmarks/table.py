"""Put the figures of benchmarks/results/*.json between their markers in README.md.

make bench-table
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mbexport.bench.markdown import markdown
from mbexport.bench.report import read
from mbexport.cli.show import bench_text

try:
    from benchmarks.int8.tables import quality_table, speed_table
except ModuleNotFoundError:  # run as a script: its own folder is on the path
    from int8.tables import quality_table, speed_table

ROOT = Path(__file__).parent.parent
RESULTS, README = ROOT / "benchmarks/results", ROOT / "README.md"


def example() -> str:
    """What `mbexport bench` prints for the example's bundle."""
    return f"```\n{bench_text(read(RESULTS / 'example.json'))}\n```"


def export() -> str:
    """Time and memory of an export."""
    result = _load("export_time.json")
    lines = ["| | median, s | runs, s | peak, MB |", "|---|---|---|---|"]
    for name, row in result["figures"].items():
        runs = ", ".join(map(str, row["seconds"]))
        lines.append(f"| {name} | {row['median_seconds']} | {runs} | {row['peak_megabytes']} |")
    return "\n".join([f"{result['machine']}; {result['date']}.", "", *lines])


def masked_lm() -> str:
    """One masked token's logits against all."""
    result = _load("masked_lm.json")
    lines = ["| ms | selected tokens | all tokens |", "|---|---|---|"]
    lines += [f"| {shape} | {row['selected']} | {row['all']} |" for shape, row in result["figures"].items()]
    return "\n".join([f"{result['machine']}; {result['date']}.", "", *lines])


def half() -> str:
    """FP16 graphs against PyTorch in FP32."""
    result = _load("half.json")
    lines = [
        "| | texts | longest | least cosine | equal predictions | values rescaled |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {row['rows']} | {row['longest']} | {row['cosine']:.7f} | {100 * row['agreement']:.2f} % | "
        f"{row['shifted']} of {row['values']} |"
        for name, row in result["figures"].items()
    ]
    return "\n".join([f"{result['machine']}; {result['date']}.", "", *lines])


def engines() -> str:
    """Builds of base size."""
    result = _load("engines.json")
    lines = ["| GPU | build, s | peak, MB | engine, MB | fused attention |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} ({row['compute_capability']}) | {row['seconds']:.1f} | {row['peak_bytes'] / 1e6:.0f} | "
        f"{row['engine_bytes'] / 1e6:.0f} | {row['fused_attention']} |"
        for name, row in result["figures"].items()
    ]
    builders = ", ".join(sorted({row["builder"] for row in result["figures"].values()}))
    return "\n".join([f"{builders}; {result['machine']}; {result['date']}.", "", *lines])


def start() -> str:
    """From nothing to the first answer, and memory of several processes."""
    result = _load("start.json")
    count = result["processes"]
    lines = [f"| | first answer, s | own memory of a process, MB | {count} processes, MB |", "|---|---|---|---|"]
    lines += [
        f"| {size}: {name} | {row['median_seconds']:.2f} | {row['own_megabytes']:.0f} | {row['megabytes_of_all']:.0f} |"
        for size, rows in result["figures"].items()
        for name, row in rows.items()
    ]
    return "\n".join([f"ONNX Runtime {result['onnxruntime']}; {result['machine']}; {result['date']}.", "", *lines])


def packing() -> str:
    """Wasted places by plan, then times on a CPU."""
    result = _load("packing.json")
    names = list(result["wasted"])
    lines = [f"| wasted places, of texts | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for plan in result["wasted"][names[0]]:
        rows = (result["wasted"][name][plan] for name in names)
        cells = (f"{100 * row['wasted']:.1f} % ({row['runs']} runs, {row['shapes']} shapes)" for row in rows)
        lines.append(f"| {plan} | {' | '.join(cells)} |")
    lines += ["", "| on a CPU, 64 texts of Normal(256, 64) | s |", "|---|---|"]
    lines += [f"| {name} | {row['median_seconds']} |" for name, row in result["cpu"].items()]
    return "\n".join([f"{result['machine']}; {result['date']}.", "", *lines])


def service() -> str:
    """What the service takes, and what it does with four times as much."""
    result = _load("service.json")
    capacity, overload, memory = result["capacity"], result["overload"], result["memory_megabytes"]
    tokens, refused = result["texts"]["tokens"], overload["refused_ms"]
    rows = {
        "texts": f"{result['texts']['texts']} in {result['texts']['requests']} requests; tokens: median "
        f"{tokens['median']}, mean {tokens['mean']}, most {tokens['max']}",
        "capacity": f"{capacity['accepted_per_second']} requests/s ({capacity['texts_per_second']} texts/s); "
        f"p50 {capacity['accepted_ms']['p50']} ms, p99 {capacity['accepted_ms']['p99']} ms",
        "offered": f"{overload['offered_per_second']:.0f} requests/s for {overload['seconds']:.0f} s: "
        f"{overload['sent']}",
        "accepted": f"{overload['statuses'].get('200', 0)}; p50 {overload['accepted_ms']['p50']} ms, p99 "
        f"{overload['accepted_ms']['p99']} ms, longest {overload['accepted_ms']['max']} ms",
        "refused (429)": f"{overload['statuses'].get('429', 0)}; p50 {refused['p50']} ms, p99 {refused['p99']} ms",
        "other answers": str(sum(n for status, n in overload["statuses"].items() if status not in ("0", "200", "429"))),
        "wrong, lost": f"{overload['wrong']}, {overload['lost']}",
        "memory": f"{memory['warm']} MB after warm-up, {memory['most']} MB at most: {memory['growth_percent']:+.1f} %",
        "ready during the overload": f"{result['ready']['asked'] - result['ready']['not_ready']} of "
        f"{result['ready']['asked']} probes, the slowest {result['ready']['slowest_ms']} ms",
        "killed, started again": f"first answer after {result['restart_seconds']['first_answer']} s",
    }
    lines = ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]
    return "\n".join([f"{result['machine']}; {result['date']}.", "", *lines])


def cpu() -> str:
    """Every contender on every workload."""
    return markdown(read(RESULTS / "cpu.json"))


SECTIONS: dict[str, Callable[[], str]] = {
    "example-bench": example, "export-table": export, "masked-lm-table": masked_lm, "cpu-table": cpu,
    "half-table": half, "engines-table": engines, "int8-quality-table": quality_table, "int8-speed-table": speed_table,
    "start-table": start, "packing-table": packing, "service-table": service,
}  # fmt: skip


def _load(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / name).read_text("utf-8"))
    return result


def split_readme(section: str) -> tuple[str, str, str]:
    """README.md before, between and after a section's markers."""
    before, rest = README.read_text("utf-8").split(f"<!-- {section} -->")
    between, after = rest.split(f"<!-- /{section} -->")
    return before, between, after


def main() -> None:
    """Replace what is there."""
    for section, render in SECTIONS.items():
        before, _, after = split_readme(section)
        README.write_text(f"{before}<!-- {section} -->\n{render()}\n<!-- /{section} -->{after}", "utf-8")


if __name__ == "__main__":
    main()
