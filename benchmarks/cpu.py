"""Our runtime on a CPU against every peer: time, memory, start, agreement.

    make bench

Base size, random weights, float32. Writes benchmarks/results/cpu.json and its pictures and
prints the README's tables; a part of the run (--only-workloads, --only-contenders, another
--checkpoint) writes to build/bench-part.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

from mbexport import export_onnx
from mbexport import manifest as manifests
from mbexport.bench.arithmetic import model_size
from mbexport.bench.contenders import Contender
from mbexport.bench.markdown import markdown
from mbexport.bench.pictures import draw
from mbexport.bench.report import Report, write
from mbexport.bench.run import Plan, run_bench
from mbexport.bench.workloads import LONG, SHAPES, Maker, Workload
from mbexport.cli.console import progress_bar
from mbexport.runtime.cpu_limit import available_cores

try:
    from benchmarks.peers import base_checkpoint, prepare
except ModuleNotFoundError:  # run as a script: its own folder is on the path
    from peers import base_checkpoint, prepare

BUILD, RESULTS = Path("build"), Path("benchmarks/results")
OURS = "mbexport"
MEMORY = ("8x512", "1x2048", "1x8192", "1x8192-padded")
PADDED = 8192

# From LONG tokens on. What optimum's O2 graph took at 1x8192 is known: 17.2 GB.
QUADRATIC = ("ORT, optimum", "ORT, transformers", "ORT, transformers fused", "torch eager")
LARGE = ("ORT, optimum O2", "OpenVINO, optimum", "OpenVINO, transformers")  # measured alone, after the others
TOO_LARGE = "left out from 4,096 tokens on, where memory may not suffice: optimum's O2 graph took 17 GB at 1x8192"
# The paper's sets take up to a minute a run: who runs them, and where the others are to be looked up.
SHORT_SET_PEERS = (OURS, "ORT, optimum", "OpenVINO, transformers")
LONG_SET_PEERS = (OURS, "OpenVINO, transformers")
SET_PEERS = {
    "fixed-short": (SHORT_SET_PEERS, "8x512"),
    "variable-short-fixed": (SHORT_SET_PEERS, "8x512"),
    "variable-short-longest": (SHORT_SET_PEERS, "8x512"),
    "fixed-long": (LONG_SET_PEERS, "1x8192"),
    "variable-long-fixed": (LONG_SET_PEERS, "1x8192"),
    "variable-long-longest": (LONG_SET_PEERS, "1x8192"),
}
MOST_ROUNDS = {
    "8x512": 3, "1x2048": 3, "1x8192": 2, "1x8192-padded": 1, "fixed-short": 2, "variable-short-fixed": 3,
    "variable-short-longest": 3, "fixed-long": 1, "variable-long-fixed": 1, "variable-long-longest": 1,
}  # fmt: skip


def contenders(bundle: Path, checkpoint: Path, graphs: dict[str, Path], threads: int) -> list[Contender]:
    """Ours first, then every peer."""
    found = [Contender(OURS, "mbexport", str(bundle), threads)]
    found += [Contender(f"ORT, {name}", "onnxruntime", str(path), threads) for name, path in graphs.items()]
    plain = ("optimum", "transformers")  # OpenVINO does not know ONNX Runtime's fused operators
    found += [Contender(f"OpenVINO, {name}", "openvino", str(graphs[name]), threads) for name in plain]
    kinds = ("eager", "sdpa", "compile")
    return found + [Contender(f"torch {kind}", f"torch-{kind}", str(checkpoint), threads) for kind in kinds]


def workloads(maker: Maker, max_length: int) -> list[Workload]:
    """Single shapes, the padded one, the paper's sets; those that the model is long enough for."""
    every = [*map(maker.shape, SHAPES), maker.padded(PADDED), *maker.efficiency_sets()]
    return [workload for workload in every if workload.longest <= max_length]


def leave_out(contender: Contender, workload: str, longest: int) -> str | None:
    """Why a contender does not run a workload."""
    name = contender.name
    if name == "torch compile" and (workload == "start" or longest >= LONG):
        return "left out: its first answer waits for the compiler, and from 4,096 tokens on it has sdpa's attention"
    if longest >= LONG and name in QUADRATIC:
        return TOO_LARGE
    if name == "ORT, optimum O2" and workload == f"1x{PADDED}-padded":
        return f"left out: takes 17 GB and more than a minute a run; see 1x{PADDED}"
    peers, instead = SET_PEERS.get(workload, ((name,), ""))
    return None if name in peers else f"left out, to keep the run short; see {instead}"


def alone(contender: Contender, _workload: str, longest: int) -> bool:
    """Whether a contender needs the machine's memory for itself."""
    return longest >= LONG and contender.name in LARGE


def parts(bundle: Path, report: Report) -> dict[str, dict[str, float]]:
    """What our time goes to, at every length of a single text."""
    lengths = [str(w.longest) for w in report.workloads if w.texts == 1 and w.padding == "none"]
    if not lengths:
        return {}
    command = [sys.executable, "benchmarks/parts.py", str(bundle), "--lengths", ",".join(lengths)]
    command += ["--threads", str(report.machine.threads)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, dict[str, float]] = json.loads(result.stdout)
    return found


def log(done: int, total: int, what: str) -> None:
    """Progress, a line a turn, where no bar is shown."""
    print(f"{time.strftime('%H:%M:%S')} {100 * done // total} % {what}", file=sys.stderr, flush=True)


def make_plan(options: argparse.Namespace, bundle: Path, entrants: list[Contender]) -> Plan:
    """All workloads and contenders, or the part that was asked for."""
    manifest = manifests.read(bundle)
    size = model_size(bundle, manifest)
    maker = Maker(size.vocab_size, size.pad_id)
    runs = workloads(maker, manifest.max_length)
    if options.only_workloads:
        runs = [workload for workload in runs if workload.name in options.only_workloads.split(",")]
    if options.only_contenders:
        wanted = [OURS, *options.only_contenders.split(";")]
        entrants = [contender for contender in entrants if contender.name in wanted]
    return Plan(
        model=f"ModernBERT, {len(size.layer_is_global)} layers of {size.hidden}, random weights",
        size=size,
        contenders=tuple(entrants),
        workloads=tuple(runs),
        tokenizer=bundle / "tokenizer.json",
        memory=MEMORY,
        start=maker.shape("1x16"),
        rounds=options.rounds,
        most_rounds=MOST_ROUNDS,
        leave_out=leave_out,
        alone=alone,
        notes=(f"measured after the others from {LONG} tokens on, each alone: {'; '.join(LARGE)}",),
    )


def main() -> None:
    """Prepare, measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimum", required=True, help="path of optimum-cli")
    parser.add_argument("--checkpoint", type=Path, help="default: base size, random weights")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only-workloads", help="names, separated by commas")
    parser.add_argument("--only-contenders", help="names, separated by semicolons; ours always runs")
    options = parser.parse_args()
    whole = not (options.checkpoint or options.only_workloads or options.only_contenders)
    checkpoint = options.checkpoint or base_checkpoint(BUILD / "base")
    bundle = BUILD / f"bench-bundle-{checkpoint.name}"
    export_onnx(checkpoint, bundle, force=True)
    graphs = prepare(checkpoint, options.optimum, BUILD / "peers" / checkpoint.name)
    plan = make_plan(options, bundle, contenders(bundle, checkpoint, graphs, options.threads))
    with progress_bar("Measuring", quiet=False) as progress:
        report = run_bench(plan, progress if sys.stderr.isatty() else log)
    report = dataclasses.replace(report, parts=parts(bundle, report))
    folder = RESULTS if whole else BUILD / "bench-part"
    folder.mkdir(parents=True, exist_ok=True)
    write(report, folder / "cpu.json")
    draw(report, folder, "cpu_")
    print(markdown(report))
    for fault in report.faults:
        print(fault, file=sys.stderr)


if __name__ == "__main__":
    main()
