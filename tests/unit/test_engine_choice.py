from __future__ import annotations

import ctypes
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mbexport.driver import DRIVER, Device, find_gpu, gpu_memory, names_model
from mbexport.engines.local import gpu_of
from mbexport.errors import BackendError
from mbexport.manifest import Engine, Graph, Manifest, Source
from mbexport.runtime.engines import Choice, choose_engines, installed_version, same_release

A100 = Device("NVIDIA A100-SXM4-40GB", "8.0")
VERSIONS = {"tensorrt-rtx": "1.7.1.116", "tensorrt": "10.13.3.9"}


def engine(file: str, **fields: Any) -> Engine:
    entry = {
        "file": file,
        "gpu": "a100",
        "compute_capability": "8.0",
        "precision": "fp16",
        "builder": "tensorrt-rtx",
        "builder_version": VERSIONS.get(fields.get("builder", "tensorrt-rtx")),
        "profile": "1x1:8x128:32x512",
        "sha256": "0",
        "bytes": 1,
        "graph": "onnx/model_fp16.onnx",
        "graph_sha256": "0",
    }
    return Engine(**(entry | fields))


def choose(
    engines: list[Engine],
    precision: str = "auto",
    *,
    gpu: Device = A100,
    installed: Callable[[str], str | None] = VERSIONS.get,
    graphs: tuple[Graph, ...] = (),
) -> Choice:
    manifest = Manifest(Source("m", "0"), "fill-mask", 512, graphs=graphs, engines=tuple(engines))
    return choose_engines(manifest, gpu, precision, installed)


def names(engines: list[Engine], precision: str = "auto", **options: Any) -> list[str]:
    return [found.file for found in choose(engines, precision, **options).fitting]


def test_the_best_comes_first() -> None:
    engines = [
        engine("fp32", precision="fp32", builder="tensorrt"),
        engine("bf16", precision="bf16"),
        engine("a30", gpu="a30"),
        engine("short"),
        engine("long", profile="1x1:8x128:32x512,1x1:1x2048:2x8192"),
        engine("tuned", builder="tensorrt"),
    ]
    assert names(engines) == ["tuned", "long", "short", "a30", "bf16", "fp32"]
    assert names(engines, "fp32") == ["fp32"]
    assert names(engines, "int8") == []


def test_a_packed_engine_is_taken_where_it_takes_as_much_and_is_of_a_graph_that_is_there() -> None:
    graphs = tuple(Graph(f"onnx/{name}.onnx", "fp16", "tensorrt", 23, name) for name in ("plain", "packed"))
    plain, packed = (
        engine(name, graph=f"onnx/{name}.onnx", graph_sha256=name, packed=name == "packed" or None)
        for name in ("plain", "packed")
    )
    assert names([plain, packed], graphs=graphs) == ["packed", "plain"]
    assert names([plain, packed], graphs=graphs[:1]) == ["plain", "packed"]  # packed of an earlier graph
    short = replace(packed, profile="1x1:8x128:32x511")
    assert names([plain, short], graphs=graphs) == ["plain", "packed"]
    assert names([replace(plain, profile="1x1:8x128:32x8192"), packed], graphs=graphs) == ["packed", "plain"]  # no more
    assert names([replace(plain, builder="tensorrt", builder_version=VERSIONS["tensorrt"]), packed], graphs=graphs) == [
        "plain", "packed",
    ]  # fmt: skip


@pytest.mark.parametrize(("title", "best"), [("NVIDIA L40S", "l40s"), ("NVIDIA L4", "l4"), ("NVIDIA L40", "fast")])
def test_an_engine_for_this_very_model_comes_first(title: str, best: str) -> None:
    profiles = {"l4": "1x1:1x1:1x2", "l40s": "1x1:1x1:1x2", "fast": "1x1:1x1:1x3"}
    engines = [engine(gpu, gpu=gpu, compute_capability="8.9", profile=profiles[gpu]) for gpu in profiles]
    assert names(engines, gpu=Device(title, "8.9"))[0] == best


def test_tensorrt_is_for_one_model_tensorrt_rtx_for_a_compute_capability() -> None:
    l4 = Device("NVIDIA L4", "8.9")
    rtx = engine("rtx", gpu="rtx4090", compute_capability="8.9")
    tuned = replace(rtx, file="tuned", builder="tensorrt", builder_version=VERSIONS["tensorrt"])
    choice = choose([tuned], gpu=l4)
    assert choice.fitting == ()
    assert "tuned was built by tensorrt on rtx4090, which is another model than NVIDIA L4" in choice.refused[0]
    assert choose([tuned, rtx], gpu=l4) == Choice((rtx,), ())
    assert names([tuned, rtx], gpu=Device("NVIDIA GeForce RTX 4090", "8.9")) == ["tuned", "rtx"]


@pytest.mark.parametrize("title", ["Tesla T4", "NVIDIA A10G", "NVIDIA RTX A6000", "NVIDIA GeForce RTX 4070 Ti SUPER"])
def test_an_engine_built_here_fits_here(title: str) -> None:
    local = gpu_of(title, (8, 0), 2**34)
    assert names([engine("own", gpu=local.name, builder="tensorrt")], gpu=Device(title, "8.0")) == ["own"]


@pytest.mark.parametrize(
    ("name", "title", "same"),
    [
        ("rtx4090", "NVIDIA GeForce RTX 4090", True),
        ("a100", "NVIDIA A100-SXM4-80GB", True),
        ("h100", "NVIDIA H100 80GB HBM3", True),
        ("t4", "Tesla T4", True),
        ("rtx-a6000", "NVIDIA RTX A6000", True),
        ("rtx-3070-ti-laptop-gpu", "NVIDIA GeForce RTX 3070 Ti Laptop GPU", True),
        ("l4", "NVIDIA L40S", False),
        ("l40", "NVIDIA L40S", False),
        ("a10", "NVIDIA A100-PCIE-40GB", False),
        ("a10", "NVIDIA A10G", False),
        ("h100", "NVIDIA GH200 480GB", False),
        ("rtx3090", "NVIDIA GeForce RTX 3090 Ti", False),
        ("rtx4090", "NVIDIA GeForce RTX 4090 Laptop GPU", False),
        ("rtx-3070-ti", "NVIDIA GeForce RTX 3070 Ti Laptop GPU", False),
        ("", "NVIDIA L4", False),
    ],
)
def test_a_short_name_of_a_gpu(name: str, title: str, same: bool) -> None:
    assert names_model(name, title) is same


def quantized(precision: str) -> Engine:
    return engine(precision, precision=precision, graph=f"onnx/model_{precision}.onnx", graph_sha256=precision)


def origin(precision: str, gate: str | None, sha256: str | None = None) -> Graph:
    return Graph(f"onnx/model_{precision}.onnx", precision, "tensorrt", 23, sha256 or precision, gate=gate)


def test_int8_and_fp8_are_taken_first_where_the_gate_of_their_graph_passed() -> None:
    engines = [engine("fp16"), quantized("fp8"), quantized("int8")]
    assert names(engines, graphs=(origin("int8", "passed"), origin("fp8", "passed"))) == ["int8", "fp8", "fp16"]
    assert names(engines, graphs=(origin("int8", "failed"), origin("fp8", "passed"))) == ["fp8", "fp16"]
    assert names(engines, graphs=(origin("int8", "passed"),)) == ["int8", "fp16"]
    assert names(engines) == ["fp16"]
    assert names(engines, "fp8") == ["fp8"]


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (origin("int8", "failed"), "its quality gate failed"),
        (origin("int8", None), "its quality was not measured"),
        (origin("int8", "passed", "another"), "the graph that it was built from is gone, so its quality is not known"),
        (origin("fp8", "passed"), "the graph that it was built from is gone, so its quality is not known"),
    ],
)
def test_without_a_passed_gate_an_engine_must_be_named(graph: Graph, why: str) -> None:
    choice = choose([quantized("int8")], graphs=(graph,))
    assert choice.fitting == ()
    taken = "so it is taken only where asked for: precision='int8'"
    assert choice.refused == (f"int8 is int8, and {why}, {taken}",)
    assert names([quantized("int8")], "int8", graphs=(graph,)) == ["int8"]


def test_no_engine_of_an_unknown_precision_is_taken_unasked() -> None:
    graphs = (origin("int4", "passed"),)
    (fault,) = choose([quantized("int4")], graphs=graphs).refused
    assert fault == "int4 is int4, which is taken only where asked for: precision='int4'"
    assert names([quantized("int4")], "int4", graphs=graphs) == ["int4"]


def test_engines_for_other_machines_are_reasons_where_there_are_no_others() -> None:
    others = [engine("t4", compute_capability="7.5"), engine("l4", compute_capability="8.9")]
    assert len(choose(others).refused) == 2
    mine = engine("mine", builder_version="1.0.0.0")
    refused = choose([*others, mine]).refused
    assert [reason.split()[0] for reason in refused] == ["mine"]


def test_engines_of_another_precision_than_asked_for_are_no_reason() -> None:
    assert choose([engine("fp16")], "fp32").refused == ()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"gpu": "a30", "builder": "tensorrt"}, "was built by tensorrt on a30, which is another model than NVIDIA"),
        ({"compute_capability": "8.6"}, "compute capability 8.6; NVIDIA A100-SXM4-40GB has 8.0"),
        ({"builder_version": "1.7.0.33"}, "here is 1.7.1.116"),
        ({"builder": "tensorrt", "builder_version": "10.13.2.6"}, "here is 10.13.3.9"),
        ({"builder_version": "1.6.0.10"}, "pip install 'tensorrt-rtx==1.6.0.*' cuda-bindings, or build it again"),
        ({"builder": "other", "builder_version": "1"}, "this version runs engines of tensorrt-rtx and tensorrt"),
    ],
)
def test_every_reason_is_one_sentence(fields: dict[str, str], reason: str) -> None:
    choice = choose([engine("e", **fields)])
    assert choice.fitting == ()
    assert reason in choice.refused[0]
    assert choice.refused[0].startswith("e ")
    assert "\n" not in choice.refused[0]


@pytest.mark.parametrize(("builder", "release"), [("tensorrt-rtx", "1.7.1"), ("tensorrt", "10.13.3")])
def test_a_missing_tensorrt_is_named_by_what_a_serving_machine_needs(builder: str, release: str) -> None:
    """Not by an extra: those are for building, and bring Polygraphy and the exporter."""
    choice = choose([engine("e", builder=builder)], installed=lambda _: None)
    install = f"pip install '{builder}=={release}.*' cuda-bindings"
    assert choice.refused == (f"e needs {builder}, which is not installed: {install}",)


def test_a_command_that_is_named_holds_no_other() -> None:
    (fault,) = choose([engine("e", builder_version="1'; other #")], installed=lambda _: None).refused
    assert shlex.split(fault.split("pip install ")[1]) == ["tensorrt-rtx==1'; other #.*", "cuda-bindings"]


def test_releases() -> None:
    assert same_release("1.7.1.116", "1.7.1.200")
    assert not same_release("1.7.1.116", "1.7.0.116")
    assert not same_release("10.13.0.35", "10.14.0.35")
    assert not same_release("1.7", "1.7.1")


def test_installed_versions_are_read_without_an_import() -> None:
    before = set(sys.modules)
    version = installed_version("tensorrt-rtx")
    assert version is None or version.count(".") >= 2
    assert not {"tensorrt", "tensorrt_rtx"} & (set(sys.modules) - before)


class Driver:
    """The driver library of a machine with one RTX 4090."""

    def __init__(self, **status: int) -> None:
        self._status = status

    def cuInit(self, _flags: int) -> int:
        return self._status.get("cuInit", 0)

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = number
        return self._status.get("cuDeviceGet", 0)

    def cuDeviceGetName(self, name: Any, size: int, _device: Any) -> int:
        assert size == len(name)
        name.value = b"NVIDIA GeForce RTX 4090"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, _device: Any) -> int:
        value._obj.value = {75: 8, 76: 9}[attribute]
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, _device: Any) -> int:
        size._obj.value = 24 * 2**30
        return 0


def with_driver(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver if name == DRIVER else None)


def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, Driver())
    assert find_gpu() == Device("NVIDIA GeForce RTX 4090", "8.9")
    assert gpu_memory() == 24 * 2**30


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"cuInit": 100}, "the NVIDIA driver sees no GPU"),
        ({"cuInit": 803}, "cuInit returned error 803"),
        ({"cuDeviceGet": 1}, "cuDeviceGet returned error 1"),
    ],
)
def test_a_driver_without_a_gpu(status: dict[str, int], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(monkeypatch, Driver(**status))
    with pytest.raises(BackendError, match=message):
        find_gpu()


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(BackendError, match="no NVIDIA driver is installed"):
        find_gpu()
