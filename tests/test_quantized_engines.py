"""INT8 and FP8 engines really built by TensorRT-RTX, and what is seen in them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result

from mbexport import build_engine, export_onnx
from mbexport import manifest as manifests
from mbexport.cli import main
from mbexport.engines.job import Job
from mbexport.engines.prepare import prepare
from mbexport.engines.process import run as run_job
from mbexport.engines.products import Products, code_products, look, products_warning
from mbexport.errors import EngineError
from mbexport.files import no_progress
from mbexport.quantize.targets import ENGINE_FILES
from tests.checkpoints import save_checkpoint
from tests.quantized import largest_values, quantized_tensors, write_quantized

SMALL = ["1x1:1x128:1x256", "1x1:4x64:8x128"]
UNGATED = "was not put through mbexport int8's quality gate"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with INT8 and FP8 graphs for TensorRT, not to be changed."""
    directory = tmp_path_factory.mktemp("quantized")
    save_checkpoint(directory / "checkpoint", hidden_size=128, num_attention_heads=2)
    bundle = directory / "bundle"
    export_onnx(directory / "checkpoint", bundle)
    ranges = largest_values(bundle)
    for precision in ENGINE_FILES:
        write_quantized(bundle, precision, quantized_tensors(bundle, precision, ranges))
    return bundle


@pytest.fixture
def bundle(quantized: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(quantized, tmp_path / "bundle"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["trt", *map(str, arguments)])


def test_int8_engines_for_three_gpus(bundle: Path) -> None:
    result = run(bundle, "--gpu", "t4", "--gpu", "a100", "--gpu", "rtx4090", "--precision", "int8")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("int8 products    28 of 28, as the engine's own program has them") == 3
    assert result.stdout.count("fused attention  4 of 4 layers") == 3
    assert result.stderr == f"warning: onnx/model_int8_trt.onnx {UNGATED}; see what validate says of your texts\n"
    assert [engine.file for engine in manifests.read(bundle).engines] == [
        "engines/t4-int8.engine", "engines/a100-int8.engine", "engines/rtx4090-int8.engine",
    ]  # fmt: skip


def test_fp8_engine(bundle: Path) -> None:
    (report,) = build_engine(bundle, gpu="rtx4090", precision="fp8", profiles=SMALL)
    assert report.products == Products("fp8", 28, ())
    assert report.to_dict()["products"] == {"precision": "fp8", "asked": 28, "unseen": ()}
    assert report.fused_text == "4 of 4 layers"
    assert report.engine.file == "engines/rtx4090-fp8.engine"
    int8 = code_products(ir.load(bundle / ENGINE_FILES["int8"]))
    found = look(bundle / report.engine.file, int8, 2)
    assert found is not None
    assert found.unseen == tuple(int8)  # the control: they are of the other type
    fp8 = code_products(ir.load(bundle / ENGINE_FILES["fp8"]))
    found = look(bundle / report.engine.file, fp8, 3)
    assert found is not None
    assert found.unseen == tuple(fp8)  # and there are two profiles


@pytest.mark.parametrize(
    ("gate", "words"), [("passed", None), ("failed", "did not pass"), (None, "was not put through")]
)
def test_verdict_of_the_gate(gate: str | None, words: str | None, bundle: Path) -> None:
    manifest = manifests.read(bundle)
    graphs = tuple(dataclasses.replace(graph, gate=gate) for graph in manifest.graphs)
    manifests.write(dataclasses.replace(manifest, graphs=graphs), bundle)
    (report,) = build_engine(bundle, gpu="l4", precision="int8", profiles=SMALL[:1])
    assert [words in warning for warning in report.warnings] == ([] if words is None else [True])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "a100", "--precision", "fp8"], "a100 has compute capability 8.0, and fp8 needs 8.9: rtx4090, l4"),
        (["--gpu", "t4", "--precision", "fp8"], "take --precision int8"),
        (["--gpu", "h100", "--precision", "fp8"], "TensorRT-RTX builds for compute capability 7.5"),
        (["--gpu", "a100", "--precision", "int8", "--keep-fp32", "layers.0"], "leave --keep-fp32 out"),
    ],
)  # fmt: skip
def test_refusals(arguments: list[str], message: str, bundle: Path) -> None:
    result = run(bundle, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (bundle / "engines").exists() or not list((bundle / "engines").iterdir())


@pytest.mark.parametrize(
    ("precision", "missing"),
    [("int8", "holds no int8 graph; make one"), ("fp8", "calibration.npz is missing; make it")],
)
def test_bundle_without_such_a_graph(precision: str, missing: str, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    result = run(bundle, "--gpu", "l4", "--precision", precision)
    assert result.exit_code == 2
    assert f"{missing} first: mbexport int8 {bundle} --calibration FILE" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def build(bundle: Path, file: str, target: tuple[int, int], engine: Path) -> dict[str, str]:
    source = prepare(bundle / file, [True, False, False, True])
    job = Job("tensorrt-rtx", target, str(source.path), tuple(SMALL), (), None, None, str(engine))
    run_job(job, source.model, no_progress)
    return source.products


def test_builder_refuses_fp8_below_8_9_too(bundle: Path, tmp_path: Path) -> None:
    """What the GPU table says before a build is what the builder would say."""
    with pytest.raises(EngineError, match="HW-specific datatypes: fp8_e4m3"):
        build(bundle, ENGINE_FILES["fp8"], (8, 6), tmp_path / "engine")


def test_products_whose_values_have_no_codes_are_not_taken_for_int8(bundle: Path, tmp_path: Path) -> None:
    """The control of what is seen: codes in the matrices alone, FP16 products."""
    model = ir.load(bundle / ENGINE_FILES["int8"])
    for node in list(model.graph):
        if node.op_type == "QuantizeLinear" and "layers.2/" in (node.name or ""):
            (user,) = node.outputs[0].consumers()
            cast = ir.node("Cast", [node.inputs[0]], {"to": ir.DataType.FLOAT16}, name=f"{node.name}_cast")
            model.graph.insert_before(user, cast)
            user.outputs[0].replace_all_uses_with(cast.outputs[0])
            model.graph.remove([user, node], safe=True)
    file = "onnx/weights_only.onnx"
    ir.save(model, bundle / file)
    asked = build(bundle, file, (8, 0), tmp_path / "engine")
    found = look(tmp_path / "engine", asked, len(SMALL))
    assert found is not None
    assert found.unseen is not None
    assert len(asked) == 28
    assert {name.split("/")[0] for name in found.unseen} == {"layers.2"}
    assert len(found.unseen) == 7
    assert str(found) == "21 of 28, as the engine's own program has them"
    warning = products_warning(found, "engines/x.engine")
    assert warning is not None
    assert warning.startswith("engines/x.engine: 7 of 28 products are not seen to be computed in int8 (layers.2/attn/")


def test_engine_that_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "engine").write_bytes(b"no program" * 100)
    found = look(tmp_path / "engine", {"layers.0/attn/Wq": "int8"}, 1)
    assert str(found) == "the graph asks for 1; the engine does not say"
    assert products_warning(found, "engine") is None
    assert look(tmp_path / "engine", {}, 1) is None


def test_parts_kept_in_fp16(bundle: Path) -> None:
    ranges = largest_values(bundle)
    kept = ["embeddings", "layers.0", "layers.1.attn.in", "layers.3.mlp.gated"]
    write_quantized(bundle, "int8", quantized_tensors(bundle, "int8", ranges, kept))
    (report,) = build_engine(bundle, gpu="t4", precision="int8", profiles=SMALL[:1])
    assert report.products == Products("int8", 28 - 7 - 3 - 1, ())
    assert report.fused_text == "4 of 4 layers"


@pytest.mark.parametrize("gpu", ["t4", "a100"])
def test_tied_embeddings(gpu: str, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    export_onnx(save_checkpoint(tmp_path / "checkpoint", "ModernBertForMaskedLM"), bundle)
    write_quantized(bundle, "int8", quantized_tensors(bundle, "int8", largest_values(bundle)))
    (report,) = build_engine(bundle, gpu=gpu, precision="int8", profiles=SMALL[:1])
    assert report.products == Products("int8", 28, ())


def test_why_scales_by_channel_stand_behind_the_product(tmp_path: Path) -> None:
    """In DequantizeLinear TensorRT-RTX would write bare sums of codes into FP16: 1.0 times them, up to 64 * 128**2."""
    for by_channel, alpha in ((True, b" alpha=3F800000 "), (False, b" alpha=3C000000 ")):  # 1 and 2**-7
        file = tmp_path / f"{by_channel}.onnx"
        ir.save(one_product(by_channel=by_channel), file)
        engine = tmp_path / "engine"
        job = Job("tensorrt-rtx", (8, 0), str(file), ("1x1:1x8:1x8",), (), None, None, str(engine))
        run_job(job, file.read_bytes(), no_progress)
        (product,) = [line for line in engine.read_bytes().split(b"\n") if line.startswith(b"  fully_connected")]
        assert alpha in product


def one_product(*, by_channel: bool) -> ir.Model:
    """Of input ids as numbers, with an int8 matrix; float16."""
    rng = np.random.default_rng(0)
    tensors = {
        "scale": np.full(64, 2.0**-7, np.float16) if by_channel else np.array(2.0**-7, np.float16),
        "codes": rng.integers(-127, 128, (64, 64)).astype(np.int8),
        "table": rng.normal(size=(64, 64)).astype(np.float32),
        "step": np.array(2.0**-5, np.float32), "zero": np.array(0, np.int8), "one": np.array(1, np.float16),
    }  # fmt: skip
    values = {
        name: ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape),
                       type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
        for name, array in tensors.items()
    }  # fmt: skip
    ids = ir.val("input_ids", dtype=ir.DataType.INT64, shape=["batch", "sequence"])
    nodes: list[ir.Node] = []

    def op(kind: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        nodes.append(ir.node(kind, list(inputs), attributes))  # type: ignore[arg-type]
        return nodes[-1].outputs[0]

    x = op("QuantizeLinear", op("Gather", values["table"], ids), values["step"], values["zero"])
    matrix = op("DequantizeLinear", values["codes"], values["scale"], **({"axis": 1} if by_channel else {}))
    y = op("Cast", op("MatMul", op("DequantizeLinear", x, values["one"]), matrix), to=ir.DataType.FLOAT)
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape(["batch", "sequence", 64])
    graph = ir.Graph([ids], [y], nodes=nodes, initializers=list(values.values()), opset_imports={"": 23}, name="one")
    return ir.Model(graph, ir_version=10)
