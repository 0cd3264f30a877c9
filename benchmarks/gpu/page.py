"""What is known of a GPU, as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.gpu.state import State
from mbexport.bench.markdown import table

FILE = "results.md"
Cell = dict[str, Any]
MOST_KERNELS = 5


def write_page(state: State) -> str:
    """Write the page beside the figures; what was written."""
    text = page(state)
    state.folder.mkdir(parents=True, exist_ok=True)
    (state.folder / FILE).write_text(text, "utf-8")
    return text


def page(state: State) -> str:
    """All tables that there are figures for."""
    gpu = state.about["gpu"]
    parts = [
        f"# {gpu['name'] if gpu else 'No GPU: a smoke run on the CPU'}",
        _about(state),
        _floors(state),
        _cells(state, "Time", "Median, times the reference's speed in the same minutes, share of the floor.", _time),
        _cells(
            state, "Exactness",
            "Largest error of the spread of PyTorch's FP32 logits, over PyTorch's own FP16 run's, equal predictions.",
            _exactness,
        ),
        _cells(state, "Memory", "Of the GPU, MB, after this workload and those to the left of it.", _memory),
        _cells(state, "Kernels", "Launched, fused attention among them, softmax; device busy of its span.", _trace),
        _kernels(state),
        _rtx(state),
        _profiles(state),
        _who(state),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(state: State) -> str:
    about = state.about
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    gpu = about["gpu"]
    driver = f"driver {gpu['driver']}, compute capability {gpu['compute_capability']}. " if gpu else ""
    limits = ", ".join(f"{name} {value}" for name, value in about["limits"].items() if value)
    return (
        f"`python benchmarks/gpu/run.py{' --smoke' if not gpu else ''}`, {about['date']}. {about['model']}. {driver}"
        f"{limits + '. ' if limits else ''}{about['machine']}. mbexport {about['mbexport']}, {packages}. "
        "Times are of whole answers, token ids on the host to logits on the host."
    )


def _floors(state: State) -> str:
    if not state.rates:
        return ""
    rates = ", ".join(f"{name} {2 * rate / 1e12:.3g} TFLOP/s" for name, rate in state.rates.items() if name != "copy")
    not_had = "".join(f" No {name}: {reason}." for name, reason in state.notes.get("rates", {}).items())
    return (
        f"Measured: matrix products {rates}; copies {state.rates['copy'] / 1e9:.4g} GB/s, read and written. The floor "
        "of a workload is the larger of its multiply-adds over the first and its weights, read once, over the second."
        f"{not_had}"
    )


def _cells(state: State, title: str, what: str, show: Callable[[Cell], str | None]) -> str:
    """A table, contenders by workloads; empty where no cell has anything to show."""
    names = list(dict.fromkeys(name for row in state.cells.values() for name in row))
    rows = []
    for name in names:
        cells = [state.cell(workload, name) for workload in state.cells]
        shown = ["failed" if "failure" in cell else (show(cell) or "" if cell else "") for cell in cells]
        if any(value not in ("", "failed") for value in shown):
            rows.append([name, *shown])
    return f"## {title}\n\n{what}\n\n{table([['', *state.cells], *rows])}" if rows else ""


def _time(cell: Cell) -> str:
    share = f", {100 * cell['floor']['share']:.0f} %" if "floor" in cell else ""
    return f"{1e3 * cell['seconds']:.4g} ms ({cell['ratio']:.2f}x{share})"


def _exactness(cell: Cell) -> str:
    parity = cell["parity"]
    verdict = {True: "", False: " **FAILED**", None: ""}[parity["passed"]]
    ratio = "" if parity["ratio"] is None else f", {parity['ratio']:.2f}"
    return f"{parity['relative_error']:.1e}{ratio}, {100 * parity['agreement']:.1f} %{verdict}"


def _memory(cell: Cell) -> str | None:
    return None if cell["memory"] is None else f"{cell['memory'] / 1e6:.0f}"


def _trace(cell: Cell) -> str | None:
    if not cell.get("trace"):
        return None
    trace = cell["trace"]
    return (
        f"{trace['launched']}, {trace['fused_attention']}, {trace['softmax']}; "
        f"{1e3 * trace['busy']:.3g} of {1e3 * trace['span']:.3g} ms"
    )


def _kernels(state: State) -> str:
    """The costliest of each contender, at the first workload that was traced."""
    lines = []
    for workload, row in state.cells.items():
        for name, cell in row.items():
            if cell.get("trace"):
                costliest = cell["trace"]["kernels"][:MOST_KERNELS]
                told = "; ".join(f"`{k['name'][:60]}` {k['calls']} x, {1e3 * k['seconds']:.3g} ms" for k in costliest)
                copies = ", ".join(f"{c['count']} {kind}" for kind, c in cell["trace"]["copies"].items())
                lines.append(f"- {workload}, {name}: {told}. Copies: {copies or 'none'}.")
    return "### Costliest kernels\n\n" + "\n".join(lines) if lines else ""


def _rtx(state: State) -> str:
    if not state.rtx_targets:
        return ""
    rows = []
    for target, found in state.rtx_targets.items():
        built = f"{found['built']:.1f} s" if found.get("built") else "no"
        error = "" if found.get("error") is None else f"{found['error']:.1e} at a spread of {found['spread']:.2g}"
        rows.append([target, built, "yes" if found.get("loads") else "no", error, found.get("reason") or ""])
    head = ["built for", "built in", "loads and runs here", "error", "why not"]
    return f"## Engines of TensorRT-RTX on this GPU\n\n{table([head, *rows])}"


def _profiles(state: State) -> str:
    if not state.profiles:
        return ""
    rows = []
    for name, found in state.profiles.items():
        if "reason" in found:
            rows.append([name, found["reason"], "", "", ""])
            continue
        nodes = ", ".join(f"{count} on {provider}" for provider, count in found["nodes"].items())
        on_cpu = ", ".join(f"{count} {kind}" for kind, count in found["on_cpu"].items())
        rows.append([name, nodes, on_cpu, str(found["copies"]), f"{found['copies_in_layers']} ({found['layers']})"])
    head = ["graph", "nodes of a run of 1x512", "on the CPU", "copies", "copies in layers (layers recognized)"]
    return f"## Where ONNX Runtime runs the nodes\n\n{table([head, *rows])}"


def _who(state: State) -> str:
    """How each contender ran, or why it did not."""
    lines = []
    for name, about in state.contenders.items():
        lines.append(f"- {name}: {about.get('description') or 'did not take part: ' + about['why_not']}")
        lines += [f"  - {package}: {note}" for package, note in about.get("notes", {}).items()]
    failures = [
        f"- {name} failed on {workload}: {cell['failure']}"
        for workload, row in state.cells.items()
        for name, cell in row.items()
        if "failure" in cell
    ]
    return "## Contenders\n\n" + "\n".join([*lines, *failures]) if lines else ""
