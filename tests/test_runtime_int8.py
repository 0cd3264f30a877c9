"""``load`` of bundles with INT8 graphs: which is taken on a CPU, and what is said."""

from __future__ import annotations

import base64
import shutil
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from click.testing import CliRunner

from mbexport import export_onnx, validate
from mbexport import manifest as manifests
from mbexport.cli import main
from mbexport.errors import BackendError, BundleError, InputError
from mbexport.graph.builder import MICROSOFT, GraphBuilder
from mbexport.manifest import Graph, Manifest, Source
from mbexport.runtime import Model, QualityWarning, load, saturation
from mbexport.runtime.graphs import cpu_graph
from mbexport.runtime.saturation import products_saturate
from tests.checkpoints import EXAMPLE, save_checkpoint
from tests.int8 import add_entry, add_int8

TEXTS = ["The striker scored twice in the final minutes.", "Shares of the bank rose.", "naïve 東京 🎉"]
WIDE, NARROW = "model_int8.onnx", "model_int8_reduced.onnx"
Saturates = Callable[[bool | None], None]


@pytest.fixture
def bundle(example_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(example_bundle, tmp_path / "copy"))


@pytest.fixture
def saturates(monkeypatch: pytest.MonkeyPatch) -> Saturates:
    """Sets what the CPU does; None: it must not be asked."""

    def set_answer(answer: bool | None) -> None:
        def tried() -> bool:
            assert answer is not None, "the CPU was tried without need"
            return answer

        monkeypatch.setattr("mbexport.runtime.graphs.products_saturate", tried)

    return set_answer


def silently(bundle: Path, precision: str = "auto") -> Model:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load(bundle, device="cpu", precision=precision)


def used(model: Model) -> str:
    return model.description.split()[0]


@pytest.mark.parametrize(
    ("wide", "narrow", "saturating", "expected"),
    [
        ("passed", "passed", False, WIDE),
        ("passed", "passed", True, NARROW),
        ("failed", "passed", False, NARROW),
        ("failed", "passed", True, NARROW),
        ("passed", "failed", True, "model_ort.onnx"),
        ("passed", None, True, "model_ort.onnx"),
        ("passed", "absent", False, WIDE),
        ("passed", "absent", True, "model_ort.onnx"),
        ("absent", "passed", None, NARROW),  # right on every CPU
        ("failed", None, None, "model_ort.onnx"),
        ("absent", "absent", None, "model_ort.onnx"),
    ],
)
def test_auto_takes_int8_where_the_gate_of_the_graph_for_this_cpu_passed(
    wide: str | None, narrow: str | None, saturating: bool | None, expected: str, bundle: Path, saturates: Saturates
) -> None:
    saturates(saturating)
    for file, gate, bits in ((NARROW, narrow, 7), (WIDE, wide, 8)):  # the order says nothing
        if gate != "absent":
            add_int8(bundle, file, gate, bits=bits)
    model = silently(bundle)
    assert used(model) == expected
    exact, found = load(bundle, precision="fp32").logits(TEXTS), model.logits(TEXTS)
    spread = exact.max() - exact.min()
    assert np.abs(found - exact).max() <= (1e-5 if expected == "model_ort.onnx" else 0.1) * spread
    assert (found.argmax(axis=1) == exact.argmax(axis=1)).all()
    if expected != "model_ort.onnx":
        assert np.abs(found - exact).max() > 1e-4 * spread  # it was really computed in INT8


@pytest.mark.parametrize(("gate", "why"), [("failed", "quality gate failed"), (None, "quality was not measured")])
def test_named_int8_is_taken_whatever_the_gate_and_a_doubt_is_said(
    gate: str | None, why: str, bundle: Path, saturates: Saturates
) -> None:
    add_int8(bundle, WIDE, gate)
    saturates(False)
    with pytest.warns(QualityWarning, match=rf"model_int8\.onnx is used as asked for, and its {why}; compare") as said:
        assert used(load(bundle, precision="int8")) == WIDE
    assert [warning.filename for warning in said] == [__file__]
    assert "\n" not in str(said[0].message)
    add_int8(bundle, NARROW, "passed", bits=7)
    assert used(silently(bundle, "int8")) == NARROW  # which is right on every CPU, and passed
    saturates(True)
    assert used(silently(bundle, "int8")) == NARROW


def test_eight_bits_are_never_used_where_they_saturate(bundle: Path, saturates: Saturates) -> None:
    add_int8(bundle, WIDE)
    saturates(True)
    with pytest.raises(BundleError, match=r"in 16 bits, where they saturate.*7 bits, too, with mbexport int8, or load"):
        load(bundle, precision="int8")
    saturates(False)
    assert used(silently(bundle, "int8")) == WIDE


@pytest.mark.parametrize("precision", ["auto", "fp32", "int8", "fp8"])
def test_graphs_for_tensorrt_are_not_for_a_cpu(precision: str, bundle: Path, saturates: Saturates) -> None:
    saturates(None)
    for gated in ("int8", "fp8"):
        add_entry(bundle, gated, "passed")
    if precision in ("auto", "fp32"):
        assert used(silently(bundle, precision)) == "model_ort.onnx"
        return
    needs = "it has for TensorRT only, so it needs a GPU" if precision == "int8" else "needs a GPU"
    with pytest.raises(InputError, match=f"precision is '{precision}', which {needs}; on the CPU load it in fp32$"):
        load(bundle, device="cpu", precision=precision)


def test_the_graph_that_selects_tokens_comes_first(tmp_path: Path, saturates: Saturates) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", vocab_size=5000, architecture="ModernBertForMaskedLM")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, checkpoint)
    bundle = tmp_path / "bundle"
    export_onnx(checkpoint, bundle)
    for bits in (7, 8):
        for selects in (False, True):
            add_int8(bundle, f"model_int8_{bits}{'_selected' * selects}.onnx", bits=bits, selects=selects)
    for saturating, bits in ((False, 8), (True, 7)):
        saturates(saturating)
        model = silently(bundle)
        assert used(model) == f"model_int8_{bits}_selected.onnx"
        assert len(model(["A [MASK] and a [MASK]"])[0]) == 2


def test_a_graph_whose_bits_are_not_said_may_use_them_all(saturates: Saturates) -> None:
    graphs = (
        Graph("onnx/old.onnx", "int8", "onnxruntime", 23, "0", gate="passed"),
        Graph("onnx/model_ort.onnx", "fp32", "onnxruntime", 23, "0"),
    )
    manifest = Manifest(Source("m", "0"), "text-classification", 512, graphs=graphs)
    saturates(False)
    assert cpu_graph(Path("b"), manifest, "auto").file == "onnx/old.onnx"
    saturates(True)
    assert cpu_graph(Path("b"), manifest, "auto").file == "onnx/model_ort.onnx"


def test_the_model_that_tries_the_cpu_is_what_it_is_said_to_be() -> None:
    b = GraphBuilder({})
    rows = b.input("a", ir.DataType.UINT8, ["rows", saturation.INNER])
    weights = b.constant("b", np.full((saturation.INNER, 32), saturation.LARGEST_WEIGHT, np.int8))
    one = b.constant("scale", np.float32(1))
    sums = b.op("MatMulIntegerToFloat", rows, weights, one, one, name="product", domain=MICROSOFT)
    b.output(sums, "y", ir.DataType.FLOAT, ["rows", 32])
    stored = onnx.load_from_string(zlib.decompress(base64.b64decode(saturation.MODEL)))
    assert stored == ir.to_proto(b.build("products", "0", 20))
    assert stored.graph.initializer[0].raw_data == b"\x7f" * (saturation.INNER * 32)  # so that it is packed


def test_this_cpu(bundle: Path) -> None:
    """With the CPU as it is, the graph that is taken computes what exact integers give."""
    add_int8(bundle, WIDE)
    add_int8(bundle, NARROW, bits=7)
    assert used(silently(bundle)) == (NARROW if products_saturate() else WIDE)
    rng = np.random.default_rng(0)
    codes = rng.integers(100, 256, (7, 96)).astype(np.uint8), rng.integers(60, 128, (96, 48)).astype(np.int8)
    exact = codes[0].astype(np.int64) @ codes[1]
    assert (product(*codes) == exact).all() != products_saturate()
    assert (product(codes[0] // 2, codes[1]) == (codes[0] // 2).astype(np.int64) @ codes[1]).all()  # 7 bits: anywhere


def product(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    b = GraphBuilder({})
    rows = b.input("a", ir.DataType.UINT8, ["rows", len(weights)])
    b.output(b.op("MatMulInteger", rows, b.constant("b", weights), name="y"), "y", ir.DataType.INT32, ["rows", "n"])
    model = ir.to_proto(b.build("products", "0", 20)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"a": activations})[0])


@pytest.fixture
def tried_anew() -> Any:
    products_saturate.cache_clear()
    yield
    products_saturate.cache_clear()


@pytest.mark.usefixtures("tried_anew")
@pytest.mark.parametrize(
    ("sums", "saturating"), [(64 * 255 * 127, False), (32 * 32767, True), (64 * 255 * 127 - 1, True)]
)
def test_sums_that_are_not_exact_are_seen(sums: int, saturating: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 * 32767 is what ONNX Runtime gives on x86 with AVX2 or AVX-512 and without VNNI."""
    sessions: list[Any] = []

    def session(*given: Any, **_: Any) -> SimpleNamespace:
        sessions.append(given)
        return SimpleNamespace(run=lambda *_: [np.full((5, 32), sums, np.float32)])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    assert [products_saturate() for _ in range(3)] == [saturating] * 3
    assert len(sessions) == 1


@pytest.mark.usefixtures("tried_anew")
def test_a_runtime_without_the_operator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saturation, "MODEL", base64.b64encode(zlib.compress(b"no model")).decode())
    with pytest.raises(BackendError, match="cannot multiply in INT8"):
        products_saturate()


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_calibration_needs_a_later_onnx_runtime(
    example_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "1.23.2")
    (tmp_path / "texts.txt").write_text("".join(f"The striker scored {n} goals.\n" for n in range(9)))
    result = run("int8", example_bundle, "--calibration", tmp_path / "texts.txt")
    assert result.exit_code == 2
    assert "ONNX Runtime is 1.23.2, which cannot compute INT8 graphs for TensorRT" in result.stderr
    assert "install onnxruntime>=1.24" in result.stderr


def test_predict_takes_a_precision(bundle: Path) -> None:
    add_int8(bundle, NARROW, "failed", bits=7)
    plain, named = (run("predict", bundle, *option, *TEXTS) for option in ((), ("--precision", "int8")))
    assert plain.exit_code == named.exit_code == 0
    assert plain.stdout != named.stdout
    assert plain.stderr == ""
    (line,) = named.stderr.splitlines()
    assert line.startswith("note: ")
    assert "its quality gate failed" in line
    refused = run("predict", bundle, "--precision", "bf16", "text")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "holds no bf16 graph; it has fp32, int8" in refused.stderr


def test_inspect_shows_bits_and_gate(bundle: Path) -> None:
    add_int8(bundle, NARROW, "passed", bits=7)
    add_int8(bundle, WIDE, "failed")
    add_entry(bundle, "fp8")
    shown = run("inspect", bundle).stdout
    assert "onnx/model_int8_reduced.onnx: int8, gate passed, 7-bit activations, onnxruntime, opset 23" in shown
    assert "onnx/model_int8.onnx: int8, gate FAILED, 8-bit activations, onnxruntime" in shown
    assert "onnx/model_fp8_trt.onnx: fp8, quality not measured, tensorrt, opset 23" in shown
    assert "onnx/model_ort.onnx: fp32, onnxruntime, opset 23" in shown


def test_validate_leaves_to_the_gate_what_is_held_to_its_limits(bundle: Path) -> None:
    add_int8(bundle, WIDE)
    for gated in ("int8", "fp8"):
        add_entry(bundle, gated)
    report = validate(bundle, checkpoint=EXAMPLE, max_length=20)
    assert [graph.file for graph in report.graphs] == ["onnx/model.onnx", "onnx/model_ort.onnx"]
    assert set(report.skipped) == {"onnx/model_int8.onnx", "onnx/model_int8_trt.onnx", "onnx/model_fp8_trt.onnx"}
    assert report.skipped["onnx/model_fp8_trt.onnx"].startswith("fp8 is held to limits of its own by mbexport int8")
    assert [graph.gate for graph in manifests.read(bundle).graphs if graph.precision == "fp32"] == [None, None]


def test_validate_looks_into_int8_graphs_on_request(bundle: Path) -> None:
    add_int8(bundle, NARROW, "passed", bits=7)
    add_entry(bundle, "fp8")
    report = validate(bundle, checkpoint=EXAMPLE, max_length=20, bisect=True)
    graph = report.graphs[-1]
    assert (graph.file, graph.precision, graph.limits, graph.ratio) == (f"onnx/{NARROW}", "int8", {}, None)
    assert graph.diagnosis is not None
    assert report.skipped == {"onnx/model_fp8_trt.onnx": "ONNX Runtime computes no fp8 on a CPU"}
    assert f"parity of onnx/{NARROW}" not in [check.what for check in manifests.read(bundle).checks]
