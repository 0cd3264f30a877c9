"""INT8 against FP32 at base size, ours and other tools', every contender in a process of its own, in turns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.int8.base import CALIBRATION, base_bundle, random_ids
from benchmarks.int8.peers import dynamic, nncf
from benchmarks.int8.quality import Say
from mbexport import manifest as manifests
from mbexport.bench.arithmetic import model_size
from mbexport.bench.contenders import PORTABLE_GRAPH, Contender
from mbexport.bench.plan import own_contenders
from mbexport.bench.run import Plan, run_bench
from mbexport.bench.workloads import Maker
from mbexport.runtime.cpu_limit import available_cores
from mbexport.runtime.kernels import OFF

SHAPES, ROUNDS = ("1x128", "1x512", "8x128"), 15
OPTIMUM = Path("build/peers/base/optimum/model.onnx")  # made by make bench
ANY_ERROR = 100.0  # of the spread: what INT8 costs is told by texts and trained weights, not by random ones


def speed(work: Path, python: Path, say: Say) -> dict[str, Any]:
    """The report of ``mbexport bench``, as plain values.

    Args:
        work: a folder for what is made, and kept.
        python: of NNCF's environment.
        say: told what is done.
    """
    bundle = base_bundle(work, say)
    contenders = _contenders(bundle, work, python, say)
    size, maker = base_size(bundle)
    plan = Plan(
        model=f"ModernBERT, {len(size.layer_is_global)} layers of {size.hidden}, random weights",
        size=size,
        contenders=tuple(contenders),
        workloads=tuple(map(maker.shape, SHAPES)),
        tokenizer=bundle / "tokenizer.json",
        memory=("8x128",),
        start=maker.shape("1x16"),
        rounds=ROUNDS,
    )
    return measured(plan, say)


def measured(plan: Plan, say: Say) -> dict[str, Any]:
    """What a plan's contenders were measured to do, as plain values; faults are said, too."""
    report = run_bench(plan, lambda done, total, what: say(f"  {100 * done // total} % {what}"))
    for fault in report.faults:
        say(fault)
    return dataclasses.asdict(report)


def base_size(bundle: Path) -> tuple[Any, Maker]:
    """Of the base-size bundle: for the arithmetic floor, and to make workloads of."""
    size = model_size(bundle, manifests.read(bundle))
    return size, Maker(size.vocab_size, size.pad_id)


def _contenders(bundle: Path, work: Path, python: Path, say: Say) -> list[Contender]:
    """Ours, FP32 peers on our portable graph and on optimum's where that is there, INT8 of our portable graph."""
    threads, portable = available_cores(), bundle / PORTABLE_GRAPH
    int8 = {"onnxruntime": work / "speed-dynamic/model.onnx", "openvino": work / "speed-nncf/model.xml"}
    if not int8["onnxruntime"].exists():
        say("  quantize_dynamic")
        dynamic(portable, int8["onnxruntime"])
    if not int8["openvino"].exists():
        say("  NNCF")
        nncf(python, portable, int8["openvino"], random_ids(CALIBRATION, 0))
    own, notes = own_contenders(bundle, manifests.read(bundle), threads)
    for note in notes:
        say(note)
    found = [dataclasses.replace(contender, allowed_error=ANY_ERROR, doubt=None) for contender in own]
    found += [dataclasses.replace(each, name=f"{each.name}, without kernels", kernels=OFF) for each in found]
    found += [Contender(f"{kind}, FP32", kind, str(portable), threads) for kind in int8]
    if OPTIMUM.exists():
        found += [Contender(f"{kind}, FP32, optimum", kind, str(OPTIMUM), threads) for kind in int8]
    else:
        say(f"  without optimum's export, which make bench puts at {OPTIMUM}")
    names = {"onnxruntime": "onnxruntime quantize_dynamic", "openvino": "openvino, NNCF INT8"}
    return found + [Contender(names[kind], kind, str(path), threads, ANY_ERROR) for kind, path in int8.items()]
