"""benchmarks/gpu on a machine without a GPU: the whole small, by its own processes; and what decides its figures."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu import ort_profile, smi, trace, wheels
from benchmarks.gpu.bench import MODULE
from benchmarks.gpu.contenders import contenders, workloads
from benchmarks.gpu.exactness import figures_of, judged
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.pytorch import SdpaEngine, UnpaddedEngine
from benchmarks.gpu.rates import floor_of
from benchmarks.gpu.state import State
from benchmarks.gpu.turns import ReferenceFailedError, take_turns
from benchmarks.gpu.varlen import BY_TEXT, Kernel, as_operator, best_kernel, by_text
from mbexport.bench.arithmetic import ModelSize
from mbexport.bench.process import WorkerProcess
from mbexport.bench.workloads import Maker, Workload
from mbexport.driver import Device
from mbexport.errors import ContenderError
from tests.checkpoints import EXAMPLE

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks/gpu/run.py"
REFERENCE, GRAPH, ENGINE = "PyTorch, FlashAttention", "mbexport, ONNX Runtime, FP16", "mbexport, TensorRT-RTX, FP16"
CAPTURED = f"{GRAPH}, CUDA graphs"


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(SCRIPT),
        "--smoke",
        "--work",
        str(folder / "work"),
        "--results",
        str(folder / "results"),
    ]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, *options], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smoke run of three contenders."""
    folder = tmp_path_factory.mktemp("gpu")
    result = run(folder, "--only", GRAPH, "--only", CAPTURED, "--only", ENGINE)
    assert result.returncode == 0, result.stderr
    assert result.stdout == (folder / "results/cpu-smoke/results.md").read_text("utf-8") + "\n"
    return folder


def figures(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results/cpu-smoke/results.json").read_text())
    return content


def test_the_whole_runs_small_on_a_cpu(measured: Path) -> None:
    known = figures(measured)
    assert list(known["cells"]) == ["1x16", "1x128", "variable-short"]
    for workload, row in known["cells"].items():
        assert list(row) == ([REFERENCE, GRAPH] if workload == "variable-short" else [REFERENCE, GRAPH, CAPTURED])
        for name, cell in row.items():
            assert cell["parity"]["passed"] is True, name
            assert cell["parity"]["agreement"] == 1
            assert cell["against"] == REFERENCE
            assert cell["seconds"] > 0
            assert cell["floor"]["share"] > 0
    assert {"fp32", "fp16", "copy"} <= known["rates"].keys()
    assert "CUDA" in known["contenders"][ENGINE]["why_not"] or "cuda" in known["contenders"][ENGINE]["why_not"]
    targets = known["rtx_targets"]
    assert list(targets) == ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1", "current", "default"]
    assert [name for name, found in targets.items() if found["built"]] == [*list(targets)[:6], "default"]
    assert not any(found["loads"] for found in targets.values())
    assert all(found["reason"] for found in targets.values())
    for profile in known["profiles"].values():
        assert (profile["copies"], profile["layers"]) == (0, 6)
    page = (measured / "results/cpu-smoke/results.md").read_text("utf-8")
    assert f"| {GRAPH} |" in page
    assert f"- {ENGINE}: did not take part" in page


def test_a_second_call_measures_what_is_missing_and_nothing_else(measured: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(measured, tmp_path / "copy"))
    known = figures(folder)
    del known["cells"]["1x128"][GRAPH]
    (folder / "results/cpu-smoke/results.json").write_text(json.dumps(known))
    result = run(folder, "--only", GRAPH)
    assert result.returncode == 0, result.stderr
    again = figures(folder)
    assert again["cells"]["1x128"].pop(GRAPH)["seconds"] > 0
    assert again["cells"] == known["cells"]
    assert [line.split("  ")[-1].strip() for line in result.stderr.splitlines()] == [
        f"{GRAPH}: 1x128", f"loading {REFERENCE}, which others take turns with", f"{GRAPH}: kernels of 1x128",
    ]  # fmt: skip


def test_time_that_is_up_is_told_and_costs_nothing(measured: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(measured, tmp_path / "copy"))
    result = run(folder, "--only", GRAPH, "--again", GRAPH, "--minutes", "0")
    assert result.returncode == 3
    assert f"time is up before: {GRAPH}: 1x16" in result.stderr
    assert "goes on from here" in result.stderr
    assert run(folder, "--only", "nobody").stderr.startswith("error: there is no contender 'nobody'")


def test_figures_of_another_machine_are_not_mixed(measured: Path, tmp_path: Path) -> None:
    raw = figures(measured)
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(raw))
    about = raw["about"]
    assert State.open(folder, about).cells == raw["cells"]
    more = State.open(folder, about | {"packages": about["packages"] | {"tensorrt": "11.0"}})
    assert not more.is_out(ENGINE)  # it may take part now
    assert State.open(folder, about).is_out(ENGINE)
    for other in ({"gpu": {"name": "T4"}}, {"packages": about["packages"] | {"onnxruntime": "1.2.3"}}):
        with pytest.raises(SystemExit, match=r"holds other figures: .*name another folder"):
            State.open(folder, about | other)


def make_wheel(folder: Path, name: str, size: int) -> None:
    """A wheel of one module, with so many bytes that no compression makes fewer."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": b"DATA = " + repr(random.Random(0).randbytes(size)).encode(),  # noqa: S311
        f"{name}.pth": f"import sys; sys.read_of_{name} = True\n".encode(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for file, content in files.items():
            wheel.writestr(file, content)
        wheel.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"]))


def test_large_wheels_travel_in_parts(tmp_path: Path) -> None:
    given, store, trips = tmp_path / "wheels", tmp_path / "work/wheels", tmp_path / "trips"
    make_wheel(given, "large_one", 100_000)
    make_wheel(given, "small_one", 10)
    command = [sys.executable, str(SCRIPT.parent / "wheels.py"), "split", str(given), str(trips), "--megabytes", "1"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.count("trips/") == 1
    shutil.rmtree(trips)
    folders = wheels.split(given, trips, 60_000)
    sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in folders]
    assert len(sizes) > 3
    assert sizes[:-1] == [60_000] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= 60_000
    for number, folder in enumerate(folders):
        last = number == len(folders) - 1
        told = run(tmp_path, "--wheels", str(folder), "--collect")
        assert told.returncode == 0
        assert ("still missing: nothing" in told.stdout) == last, told.stdout
        if not last:
            refused = run(tmp_path, "--list")
            assert refused.returncode == 2
            assert "still missing: large_one-1.0-py3-none-any.whl." in refused.stderr
    for wheel in given.iterdir():
        assert (store / wheel.name).read_bytes() == wheel.read_bytes()
    listed = run(tmp_path, "--list")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.splitlines() == [contender.name for contender in contenders()]
    script = "import sys, large_one, small_one; print(len(large_one.DATA), sys.read_of_small_one)"
    site = os.environ | {"PYTHONPATH": str(tmp_path / "work/site")}
    found = subprocess.run([sys.executable, "-c", script], env=site, capture_output=True, text=True, check=True)
    assert found.stdout == "100000 True\n"


def test_a_wheel_begins_where_another_left_room(tmp_path: Path) -> None:
    given, store = tmp_path / "wheels", tmp_path / "store"
    for name in ("one", "two"):
        make_wheel(given, name, 50_000)
    folders = wheels.split(given, tmp_path / "trips", 60_000)
    sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in folders]
    assert sizes[:-1] == [60_000] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= 60_000
    for folder in folders:
        wheels.collect(folder, store)
    assert wheels.join(store) == []
    for wheel in given.iterdir():
        assert (store / wheel.name).read_bytes() == wheel.read_bytes()


def test_damaged_parts_are_refused(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "large_one", 1000)
    first, *others = wheels.split(tmp_path / "wheels", tmp_path / "trips", 2000)
    part = next(first.iterdir())
    part.write_bytes(part.read_bytes()[::-1])
    for folder in (first, *others):
        wheels.collect(folder, tmp_path / "store")
    with pytest.raises(wheels.WheelError, match=r"large_one-1.0-py3-none-any\.whl make SHA-256 .*; bring them again"):
        wheels.join(tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []
    with pytest.raises(wheels.WheelError, match="holds no wheels"):
        wheels.collect(tmp_path, tmp_path / "store")
    with pytest.raises(wheels.WheelError, match="is there already"):
        wheels.split(tmp_path / "wheels", tmp_path / "trips", 2000)


def texts() -> Workload:
    return Maker(3000).texts("texts", [1, 64, 66, 200, 131, 17], 4)


def logits(engine: Any) -> np.ndarray:
    workload = texts()
    name, rows = engine.outputs(workload, engine.run(engine.prepare(workload)))
    assert name == "logits"
    return np.stack(rows)


def test_unpadded_pytorch_computes_what_padded_computes() -> None:
    expected = logits(SdpaEngine(str(EXAMPLE), "fp32", "cpu"))
    own = figures_of(expected, logits(SdpaEngine(str(EXAMPLE), "fp16", "cpu")))

    def with_kernel(call: Any) -> dict[str, Any]:
        return judged(
            expected, logits(UnpaddedEngine(str(EXAMPLE), "fp32", "cpu", kernel=Kernel("", call, 0))), "fp16", own
        )

    def other_window(*given: Any) -> Any:
        *tensors, longest, reach = given
        return by_text(*tensors, longest, None if reach is None else reach - 1)

    def one_text(q: Any, k: Any, v: Any, starts: Any, longest: int, reach: int | None) -> Any:
        return by_text(q, k, v, starts[[0, -1]], longest, reach)

    right = with_kernel(BY_TEXT.call)
    assert right["passed"] is True
    assert right["relative_error"] < 1e-6
    assert with_kernel(other_window)["passed"] is False
    assert with_kernel(one_text)["passed"] is False
    assert judged(expected, expected + np.nan, "fp16", own)["passed"] is False
    assert judged(expected, expected + 1, "int8", own)["passed"] is None


def test_the_fastest_kernel_that_is_right_is_taken() -> None:
    def without_window(*given: Any) -> Any:
        return by_text(*given[:-1], None)

    def missing() -> Any:
        raise ImportError("no such package")

    packages = {"wrong": lambda: without_window, "missing": missing, "right": lambda: by_text}
    kernel, told = best_kernel("cpu", torch.float32, packages)
    assert kernel is not None
    assert kernel.name == "right"
    assert told["wrong"].startswith("WRONG: an error of")
    assert told["missing"] == "does not run: ImportError: no such package"
    assert best_kernel("cpu", torch.float32, {"missing": missing})[0] is None


def test_a_kernel_is_compiled_around() -> None:
    operator = as_operator(Kernel("", by_text, 0.0)).call
    q, k, v = (torch.randn(30, 2, 8) for _ in range(3))
    starts = torch.tensor([0, 12, 30], dtype=torch.int32)

    def layers(longest: int) -> torch.Tensor:
        return operator(operator(q, k, v, starts, longest, 3), k, v, starts, longest, None) + 1

    expected = by_text(by_text(q, k, v, starts, 18, 3), k, v, starts, 18, None) + 1
    compiled = torch.compile(layers, backend="eager", fullgraph=True)
    assert torch.equal(compiled(18), expected)


def test_whose_failure_it_was() -> None:
    workers = [WorkerProcess(MODULE, 60), WorkerProcess(MODULE, 60)]  # nothing is loaded in them
    try:
        with pytest.raises(ReferenceFailedError):
            take_turns(workers, 0)
        with pytest.raises(ContenderError) as alone:
            take_turns(workers[:1], 0)
        assert not isinstance(alone.value, ReferenceFailedError)
    finally:
        for worker in workers:
            worker.close()


def test_what_never_ends_is_given_up(tmp_path: Path) -> None:
    state = State(tmp_path, {"packages": {}})
    assert [state.attempt(f"{GRAPH}: 1x16") for _ in range(3)] == [True, True, False]
    assert json.loads((tmp_path / "results.json").read_text())["attempts"] == {f"{GRAPH}: 1x16": 3}
    state.put("1x16", GRAPH, {"seconds": 1.0})
    assert state.attempt(f"{GRAPH}: 1x16")
    state.attempt(f"{GRAPH}: 1x16")
    state.forget([GRAPH])
    assert state.attempt(f"{GRAPH}: 1x16")
    assert state.cell("1x16", GRAPH) == {}


def test_the_floor_by_hand() -> None:
    size = ModelSize(
        hidden=64, intermediate=96, layer_is_global=(True, False), half_window=64, vocab_size=9, pad_id=0,
        head_outputs=4, per_token=False,
    )  # fmt: skip
    workload = Maker(3000).shape("2x10")
    projections = 2 * 20 * (4 * 64 * 64 + 3 * 64 * 96)
    others = 2 * (2 * 2 * 64 * 100 + 64 * 68)  # both layers see all of ten tokens; the head
    rates = {"fp16": 10.0, "int8": 20.0, "copy": 1e9}
    found = floor_of(size, workload, "fp16", rates)
    assert found is not None
    assert found.arithmetic == pytest.approx((projections + others) / 10)
    assert found.memory == pytest.approx(2 * (4 * 64 * 64 + 3 * 64 * 96) * 2 / 1e9)
    assert found.seconds == found.arithmetic
    quantized = floor_of(size, workload, "int8", rates)
    assert quantized is not None
    assert quantized.arithmetic == pytest.approx(projections / 20 + others / 10)
    assert floor_of(size, workload, "fp8", rates) is None


def test_a_trace_is_summed_up() -> None:
    def event(category: str, name: str, start: int, duration: int, **given: Any) -> dict[str, Any]:
        return {"cat": category, "name": name, "ts": start, "dur": duration, "args": given}

    found = trace.summary([
        event("kernel", "fmha_v2_flash_fp16", 100, 30), event("kernel", "gemm", 130, 50),
        event("kernel", "gemm", 200, 40), event("kernel", "softmax_warp", 250, 5), event("cpu_op", "mm", 0, 999),
        event("gpu_memcpy", "Memcpy HtoD", 90, 5, bytes=1024), event("gpu_memcpy", "Memcpy HtoD", 95, 5, bytes=1024),
    ])  # fmt: skip
    assert (found["launched"], found["fused_attention"], found["softmax"]) == (4, 1, 1)
    assert found["kernels"][0] == {"name": "gemm", "calls": 2, "seconds": pytest.approx(90e-6)}
    assert (found["busy"], found["span"]) == (pytest.approx(125e-6), pytest.approx(155e-6))
    assert found["copies"] == {"Memcpy HtoD": {"count": 2, "bytes": 2048}}
    real = trace.trace(lambda: torch.ones(8, 8) @ torch.ones(8, 8), "cpu")
    assert any("mm" in kernel["name"] for kernel in real["kernels"])


def test_copies_within_layers_are_told_from_those_around_them() -> None:
    def node(name: str, kind: str, provider: str, at: int) -> dict[str, Any]:
        args = {"op_name": kind, "provider": f"{provider}ExecutionProvider"}
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": at, "args": args}

    first = [{"name": "model_run", "ts": 1}, node("embed", "Gather", "CPU", 2)]
    second = [
        {"name": "model_run", "ts": 10}, node("shape", "Shape", "CPU", 11), node("m0", "MemcpyFromHost", "CUDA", 12),
        node("layers.0.mlp", "MatMul", "CUDA", 13), node("m1", "MemcpyToHost", "CUDA", 14),
        node("layers.1.mlp", "MatMul", "CUDA", 15), node("m2", "MemcpyToHost", "CUDA", 16),
    ]  # fmt: skip
    found = ort_profile.summary([*first, *second])
    assert found == {
        "nodes": {"CPUExecutionProvider": 1, "CUDAExecutionProvider": 5}, "on_cpu": {"Shape": 1},
        "copies": 3, "copies_in_layers": 1, "layers": 2,
    }  # fmt: skip


def test_memory_is_what_the_gpu_has_more_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    script, used = tmp_path / "nvidia-smi", tmp_path / "used"
    script.write_text(f"#!/bin/sh\necho $* > {tmp_path}/asked\ncat {used}\n")
    script.chmod(0o755)

    def now(megabytes: str) -> int | None:
        used.write_text(megabytes + "\n")
        return smi.used_memory()

    before = now("1000")
    now("1500")  # loaded
    memory = smi.Memory(before)
    now("2500")  # others allocate while they are asked
    with memory:
        now("2750")
    assert memory.taken == 750 * 2**20
    assert "--query-gpu=memory.used --id=2" in (tmp_path / "asked").read_text()
    assert now("[N/A]") is None
    assert smi.Memory(None).taken is None
    script.write_text("#!/bin/sh\nexit 9\n")
    assert smi.ask("name") is None


def test_which_engine_of_tensorrt_rtx_a_gpu_gets(tmp_path: Path) -> None:
    def name(capability: str, precision: str, *loading: str) -> str:
        kit = Kit(tmp_path, Device("A GPU", capability), smoke=True, say=print)
        kit.rtx_names = list(loading)
        return kit.gpu_name("tensorrt-rtx", precision)

    assert [name("8.0", "fp16"), name("7.5", "int8"), name("12.0", "fp8")] == ["a100", "t4", "rtx5090"]
    assert name("9.0", "fp8", "a100", "l4") == "l4"
    assert name("9.0", "fp16", "a100", "l4") == "a100"
    with pytest.raises(ContenderError, match="TensorRT-RTX builds no fp8 engine that loads on A GPU"):
        name("9.0", "fp8", "a100")
    assert Kit(tmp_path, Device("A GPU", "9.0"), smoke=True, say=print).gpu_name("tensorrt", "fp16") == "auto"


def test_workloads_are_the_papers() -> None:
    found = {workload.name: workload for workload in workloads(Maker(3000), smoke=False)}
    assert list(found) == ["1x128", "1x512", "1x8192", "fixed-short", "variable-short", "fixed-long", "variable-long"]
    assert set(found["fixed-long"].lengths) == {8192}
    for name, mean, longest in (("variable-short", 256, 512), ("variable-long", 4096, 8192)):
        lengths = np.array(found[name].lengths)
        assert abs(lengths.mean() / mean - 1) < 0.1
        assert lengths.max() <= longest


def test_what_has_not_run_is_not_told_as_run() -> None:
    results = list((ROOT / "benchmarks/results").glob("gpu/*/results.json"))
    said = "not yet run on a GPU" in " ".join((SCRIPT.parent / "README.md").read_text("utf-8").split())
    assert said == (not results)
