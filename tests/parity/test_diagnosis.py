"""Faults of ten kinds, seeded one at a time: the search names layers and cause, and finds none in a right graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mbexport import export_onnx
from mbexport.bundle.half import ensure_half_graph
from mbexport.bundle.write import write_bundle
from mbexport.checkpoint.load import Checkpoint, load_checkpoint
from mbexport.checkpoint.spec import ModelSpec
from mbexport.parity.diagnosis.by_stages import diagnose, ranked
from mbexport.parity.diagnosis.causes import CAUSES, UNKNOWN
from mbexport.parity.diagnosis.graph_taps import GraphTaps
from mbexport.parity.pytorch.reference import TorchReference
from mbexport.parity.pytorch.taps import TorchTaps
from mbexport.parity.report import Diagnosis, Fault
from mbexport.parity.samples import TEXTS, Case, build_cases
from mbexport.runtime.text import TextEncoder
from tests.checkpoints import ENCODER, EXAMPLE, copy_example, edit_tensors, save_checkpoint
from tests.faults import (
    Edit,
    edit,
    keys_one_place_on,
    mean_over_padding,
    overflowing,
    scaled_weight,
    without_mask,
    without_norm,
)
from tests.int8 import add_int8
from tests.parity.test_architectures import VARIANTS as ARCHITECTURES
from tests.parity.test_heads import VARIANTS as HEADS
from tests.parity.test_mutations import MUTATIONS, Mutation
from tests.parity.test_sentences import PIPELINES, save_pipeline

PORTABLE, FUSED, HALF, INT8 = "onnx/model.onnx", "onnx/model_ort.onnx", "onnx/model_fp16.onnx", "onnx/model_int8.onnx"
FP32 = (PORTABLE, FUSED)
LENGTH = 257
LOCAL, GLOBAL = "local attention", "global attention"


class Examined:
    """The trained example (6 layers; every third attends globally), and PyTorch's values of it."""

    def __init__(self) -> None:
        self.checkpoint = load_checkpoint(EXAMPLE)
        self.spec = self.checkpoint.spec
        self.reference = TorchTaps(TorchReference(self.checkpoint, "sdpa"), self.spec)
        encoder = TextEncoder(EXAMPLE / "tokenizer.json", LENGTH)
        ids = [encoded.ids for encoded in encoder.encode(list(TEXTS)) if len(encoded.ids)]
        self.case: Case = build_cases(ids, 0, self.spec.half_window, LENGTH)[-1]

    def layers(self, kind: str) -> tuple[str, ...]:
        """Names of the attention stages of a kind."""
        numbers = [n for n, is_global in enumerate(self.spec.layer_is_global) if is_global == (kind == GLOBAL)]
        return tuple(f"layers.{number}.attn" for number in numbers)

    def diagnosis(self, graph: Path, precision: str) -> Diagnosis:
        found = diagnose(graph, precision, self.case, self.spec, self.reference, self.checkpoint.weights)
        assert found is not None
        assert {fault.cause for fault in found.faults} <= set(CAUSES)
        return found


@pytest.fixture(scope="module")
def examined() -> Examined:
    return Examined()


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's bundle with FP16 and INT8 graphs; copied before it is changed."""
    bundle = tmp_path_factory.mktemp("graphs") / "bundle"
    export_onnx(EXAMPLE, bundle)
    ensure_half_graph(bundle, "fp16")
    add_int8(bundle, Path(INT8).name)
    return bundle


def edited(graphs: Path, graph: str, change: Edit) -> Path:
    """A copy of a graph beside it, with a fault; it shares the weights."""
    copy = (graphs / graph).with_name("edited.onnx")
    copy.write_bytes((graphs / graph).read_bytes())
    edit(copy, change)
    return copy


def precision_of(graph: str) -> str:
    return {HALF: "fp16", INT8: "int8"}.get(graph, "fp32")


@pytest.mark.parametrize("graph", [PORTABLE, FUSED, HALF, INT8])
def test_no_fault_is_found_in_a_right_graph(graph: str, examined: Examined, graphs: Path) -> None:
    found = examined.diagnosis(graphs / graph, precision_of(graph))
    assert not found.faults
    assert len(found.stages) == 2 * examined.spec.num_layers + 4
    assert "no stage is wrong" in found.conclusion
    most = {"fp32": 1e-5, "fp16": 1e-2, "int8": 0.1}[precision_of(graph)]
    assert all(0 <= stage.own < most for stage in found.stages)
    assert all(np.isfinite(stage.accumulated) for stage in found.stages)


KINDS = {  # of heads and what else changes which modules there are
    "token classification": HEADS["token classification"],
    "question answering": HEADS["question answering"],
    "multiple choice": HEADS["multiple choice, mean"],
    "masked LM": HEADS["masked LM, tied"],
    "bare encoder": {"architecture": ENCODER},
    "all biases": ARCHITECTURES["all biases"],
    "one layer": ARCHITECTURES["one layer"],
}


@pytest.mark.parametrize("kind", [*KINDS, "sentences"])
def test_no_fault_is_found_whatever_stands_on_the_encoder(kind: str, tmp_path: Path) -> None:
    if kind == "sentences":
        directory = save_pipeline(tmp_path, *PIPELINES["dense"]())
    else:
        directory = save_checkpoint(tmp_path / "checkpoint", **KINDS[kind])
    manifest = export_onnx(directory, tmp_path / "bundle", packed=True)
    checkpoint = load_checkpoint(directory)
    reference = TorchTaps(TorchReference(checkpoint, "sdpa"), checkpoint.spec)
    ids = [np.random.default_rng(0).integers(5, 500, 200)]
    case = build_cases(ids, 0, checkpoint.spec.half_window, 129)[-1]
    assert len(manifest.graphs) == (4 if kind == "masked LM" else 3)
    for graph in manifest.graphs:
        file = tmp_path / "bundle" / graph.file
        found = diagnose(file, "fp32", case, checkpoint.spec, reference, checkpoint.weights)
        assert found is not None
        assert not found.faults, graph.file
        assert {stage.kind for stage in found.stages} >= {"embeddings", GLOBAL, "mlp", "norm"}
        assert all(stage.accumulated < 1e-4 for stage in found.stages), graph.file


def test_a_graph_against_a_graph(examined: Examined, graphs: Path, tmp_path: Path) -> None:
    """Where there is no PyTorch: what another graph computes is right."""
    reference = GraphTaps(graphs / PORTABLE, "fp32", examined.spec)
    right = diagnose(graphs / FUSED, "fp32", examined.case, examined.spec, reference, None)
    assert right is not None
    assert not right.faults
    bundle = authored(examined.checkpoint, MUTATIONS["window of 63"], tmp_path / "bundle")
    wrong = diagnose(bundle / FUSED, "fp32", examined.case, examined.spec, reference, None)
    assert wrong is not None
    assert [(fault.cause, fault.stages) for fault in wrong.faults] == [("window", examined.layers(LOCAL))]


@pytest.mark.parametrize("graph", [PORTABLE, FUSED, HALF])
def test_a_graph_that_names_none_of_its_values(graph: str, examined: Examined, graphs: Path) -> None:
    """Modules' results are found by their values, and a wrong one by its place."""
    weights = examined.checkpoint.weights

    def nameless(*changes: Edit) -> Diagnosis:
        copy = edited(
            graphs, graph, lambda model: [change(model) for change in changes] and model.metadata_props.clear()
        )
        found = diagnose(copy, precision_of(graph), examined.case, examined.spec, examined.reference, weights)
        assert found is not None
        return found

    right = nameless()
    assert not right.faults
    assert len(right.stages) == 2 * examined.spec.num_layers + 4
    (pooling,) = nameless(mean_over_padding).faults
    assert (pooling.stages, pooling.cause) == (("pooling",), "padding in the mean")
    attention = nameless(without_mask).faults[0]
    assert (attention.cause, len(attention.stages)) == ("mask dropped", examined.spec.num_layers)


def subtracted(model: ir.Model) -> None:
    """The residual stream as no search expects it: the negative of each result is subtracted."""
    model.metadata_props.clear()
    for number, found in enumerate([node for node in model.graph if (node.name or "").endswith("_residual")]):
        stream, update = found.inputs
        assert stream is not None
        assert update is not None
        negative = ir.node("Neg", [update])
        difference = ir.node("Sub", [stream, negative.outputs[0]])
        negative.outputs[0].name, difference.outputs[0].name = f"negative_{number}", f"difference_{number}"
        model.graph.insert_before(found, [negative, difference])
        found.outputs[0].replace_all_uses_with(difference.outputs[0])


def test_no_stage_is_blamed_for_what_went_wrong_before_it(examined: Examined, graphs: Path, tmp_path: Path) -> None:
    """A stage whose input cannot be told from other values is not judged, and the report says so."""
    weights = examined.checkpoint.weights

    def searched(file: Path) -> Diagnosis:
        found = diagnose(file, "fp32", examined.case, examined.spec, examined.reference, weights)
        assert found is not None
        return found

    right = searched(edited(graphs, PORTABLE, subtracted))
    assert not right.faults
    assert "told apart" not in right.conclusion
    bundle = exported(transposed, tmp_path)
    edit(bundle / PORTABLE, subtracted)
    wrong = searched(bundle / PORTABLE)
    assert not wrong.faults
    assert "what enters or leaves layers.3.attn and 8 more could not be told apart" in wrong.conclusion
    assert wrong.stages[-1].name == "layers.2.mlp"


def test_a_bias_within_a_fused_norm_belongs_to_the_product(tmp_path: Path) -> None:
    """ONNX Runtime's optimizer adds a bias, the residual stream and both together in one operator."""
    directory = save_checkpoint(tmp_path / "checkpoint", attention_bias=True, mlp_bias=True, norm_bias=True)
    checkpoint = load_checkpoint(directory)
    spec = checkpoint.spec
    export_onnx(directory, tmp_path / "bundle")
    edit(tmp_path / "bundle" / PORTABLE, with_skip_norms)
    reference = TorchTaps(TorchReference(checkpoint, "sdpa"), spec)
    ids = np.random.default_rng(0).integers(3, 512, (2, 70))
    case = Case(70, ids, np.ones_like(ids), ("none", "none"))
    found = diagnose(tmp_path / "bundle" / PORTABLE, "fp32", case, spec, reference, checkpoint.weights)
    assert found is not None
    assert not found.faults
    assert len(found.stages) == 2 * spec.num_layers + 4


def with_skip_norms(model: ir.Model) -> None:
    """MLP results, their biases and the stream are added in the operator that normalizes; it gives the sum, too."""
    model.metadata_props.clear()
    for found in [node for node in model.graph if (node.name or "").endswith("mlp_residual")]:
        stream, update = found.inputs
        assert stream is not None
        assert update is not None
        biased = update.producer()
        norm = next(user for user, _ in found.outputs[0].uses() if user.op_type == "LayerNormalization")
        assert biased is not None
        assert biased.op_type == "Add"
        attributes = {"epsilon": norm.attributes["epsilon"].as_float()}
        inputs = [stream, biased.inputs[0], *norm.inputs[1:3], biased.inputs[1]]
        fused = ir.node("SkipLayerNormalization", inputs, attributes, domain="com.microsoft", num_outputs=4)
        for number, value in enumerate(fused.outputs):
            value.name = f"{norm.name}_fused_{number}" if number in (0, 3) else ""
        model.graph.insert_before(norm, fused)
        norm.outputs[0].replace_all_uses_with(fused.outputs[0])
        found.outputs[0].replace_all_uses_with(fused.outputs[3])
        model.graph.remove([norm, found, biased], safe=True)
    model.graph.opset_imports["com.microsoft"] = 1


def test_a_graph_of_another_model_is_not_searched(examined: Examined, tmp_path: Path) -> None:
    export_onnx(save_checkpoint(tmp_path / "checkpoint", vocab_size=5000), tmp_path / "bundle")
    edit(tmp_path / "bundle" / PORTABLE, lambda model: model.metadata_props.clear())
    file, weights = tmp_path / "bundle" / PORTABLE, examined.checkpoint.weights
    assert diagnose(file, "fp32", examined.case, examined.spec, examined.reference, weights) is None


def authored(checkpoint: Checkpoint, mutate: Mutation, bundle: Path) -> Path:
    write_bundle(dataclasses.replace(checkpoint, spec=mutate(checkpoint.spec)), bundle)
    return bundle


AUTHORED = {  # of MUTATIONS: the stages' kinds, and the cause
    "window of 63": ([LOCAL], "window", "63"),
    "window of 65": ([LOCAL], "window", "65"),
    "thetas swapped": ([GLOBAL, LOCAL], "theta", "160000"),
    "one theta everywhere": ([LOCAL], "theta", "160000"),
    "local and global swapped": ([GLOBAL, LOCAL], "layer pattern", "attends"),
}


@pytest.mark.parametrize("graph", FP32)
@pytest.mark.parametrize("name", AUTHORED)
def test_attention_faults(name: str, graph: str, examined: Examined, tmp_path: Path) -> None:
    kinds, cause, words = AUTHORED[name]
    mutate = MUTATIONS[name]
    bundle = authored(examined.checkpoint, mutate, tmp_path / "bundle")
    found = examined.diagnosis(bundle / graph, "fp32")
    assert [fault.cause for fault in found.faults] == [cause] * len(kinds)
    assert [fault.stages for fault in found.faults] == [examined.layers(kind) for kind in kinds]
    assert [fault.kind for fault in found.faults] == kinds
    assert all(fault.part == "attended" and words in fault.explanation for fault in found.faults)
    assert all(fault.evidence is not None and fault.evidence < 1e-5 for fault in found.faults)
    assert {stage.name for stage in found.stages if stage.faulty} == {s for fault in found.faults for s in fault.stages}


@pytest.mark.parametrize("graph", [PORTABLE, FUSED, HALF])
def test_mask_dropped(graph: str, examined: Examined, graphs: Path) -> None:
    found = examined.diagnosis(edited(graphs, graph, without_mask), precision_of(graph))
    attention, pooling = found.faults
    assert (attention.cause, pooling.cause) == ("mask dropped", "padding in the mean")
    every = [f"layers.{number}.attn" for number in range(examined.spec.num_layers)]
    assert list(attention.stages) == every
    assert "rows with padding (right, left, interleaved)" in attention.tokens


@pytest.mark.parametrize("graph", [PORTABLE, FUSED, HALF])
def test_missing_norm(graph: str, examined: Examined, graphs: Path) -> None:
    found = examined.diagnosis(edited(graphs, graph, without_norm(2)), precision_of(graph))
    (fault,) = found.faults
    assert fault.stages == ("layers.2.mlp",)
    if graph != HALF:  # there, weights carry powers of two that belong with the norm
        assert fault.cause == "missing norm"


@pytest.mark.parametrize("graph", [PORTABLE, FUSED, HALF])
def test_mean_over_padding(graph: str, examined: Examined, graphs: Path) -> None:
    found = examined.diagnosis(edited(graphs, graph, mean_over_padding), precision_of(graph))
    (fault,) = found.faults
    assert (fault.stages, fault.kind, fault.cause) == (("pooling",), "pooling", "padding in the mean")


def test_a_cause_that_leaves_no_error_at_all(examined: Examined, tmp_path: Path) -> None:
    """The first token's vector in the place of the mean: a copy, equal to the last bit."""

    def first(spec: ModelSpec) -> ModelSpec:
        assert spec.head is not None
        return dataclasses.replace(spec, head=dataclasses.replace(spec.head, pooling="cls"))

    bundle = authored(examined.checkpoint, first, tmp_path / "bundle")
    (fault,) = examined.diagnosis(bundle / PORTABLE, "fp32").faults
    assert (fault.stages, fault.cause, fault.evidence) == (("pooling",), "pooling", 0.0)
    assert fault.explanation == "what is pooled is the first place"


def test_rotary_positions_off_by_one(examined: Examined, graphs: Path) -> None:
    found = examined.diagnosis(edited(graphs, FUSED, keys_one_place_on), "fp32")
    (fault,) = found.faults
    assert list(fault.stages) == [f"layers.{number}.attn" for number in range(examined.spec.num_layers)]
    assert (fault.kind, fault.cause, fault.part) == (f"{GLOBAL} and {LOCAL}", "rope shifted", "attended")
    assert "one place" in fault.explanation or "1 place" in fault.explanation


Tensors = dict[str, torch.Tensor]


def transposed(tensors: Tensors) -> Tensors:
    tensors["model.layers.3.attn.Wo.weight"] = tensors["model.layers.3.attn.Wo.weight"].T.contiguous()
    return tensors


def exchanged(tensors: Tensors) -> Tensors:
    """Layers 4 and 5, which both attend locally."""
    other = {4: 5, 5: 4}

    def renamed(name: str) -> str:
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(other.get(int(parts[2]), parts[2]))
        return ".".join(parts)

    return {renamed(name): tensor for name, tensor in tensors.items()}


def exported(change: Callable[[Tensors], Tensors], folder: Path) -> Path:
    """A bundle of the example whose weights are not quite its."""
    edit_tensors(copy_example(folder / "checkpoint"), change)
    export_onnx(folder / "checkpoint", folder / "bundle")
    return folder / "bundle"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_transposed_weight(precision: str, examined: Examined, tmp_path: Path) -> None:
    bundle = exported(transposed, tmp_path)
    ensure_half_graph(bundle, "fp16")
    (fault,) = examined.diagnosis(bundle / (HALF if precision == "fp16" else PORTABLE), precision).faults
    assert (fault.stages, fault.kind, fault.part) == (("layers.3.attn",), GLOBAL, "Wo")
    assert fault.cause == "transposed weight"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_layers_in_another_order(precision: str, examined: Examined, tmp_path: Path) -> None:
    bundle = exported(exchanged, tmp_path)
    ensure_half_graph(bundle, "fp16")
    fourth, fifth = examined.diagnosis(bundle / (HALF if precision == "fp16" else FUSED), precision).faults
    assert (fourth.cause, fifth.cause) == ("layer order", "layer order")
    assert (fourth.stages, fifth.stages) == (("layers.4.attn", "layers.4.mlp"), ("layers.5.attn", "layers.5.mlp"))
    assert "layers.5" in fourth.explanation
    assert "layers.4" in fifth.explanation


def test_beside_rounding_a_fault_with_a_cause_comes_first() -> None:
    faults = [Fault((name,), "mlp", "Wo", cause, "", None, "", "") for name, cause in (("a", UNKNOWN), ("b", "theta"))]
    assert [fault.stages for fault in ranked(faults, "fp16")] == [("b",), ("a",)]
    assert [fault.stages for fault in ranked(faults, "fp32")] == [("a",), ("b",)]


def test_overflow_in_one_layer(examined: Examined, graphs: Path) -> None:
    copy = edited(graphs, HALF, overflowing(1))
    (fault,) = examined.diagnosis(copy, "fp16").faults
    assert (fault.stages, fault.kind, fault.cause) == (("layers.1.mlp",), "mlp", "overflow")
    assert "65,504" in fault.explanation
    stages = {stage.name: stage for stage in examined.diagnosis(copy, "fp16").stages}
    assert stages["layers.1.attn"].own < 1e-2 < stages["layers.1.mlp"].own == np.inf
    assert stages["layers.2.attn"].own < 1e-2 < stages["layers.2.attn"].accumulated == np.inf


@pytest.mark.parametrize(
    ("tensor", "factor", "part", "causes"),
    [
        ("layers.2.mlp.Wi_gate.weight_scale", 0.5, "Wo", {"scale"}),  # a product behind might undo it, and does not
        ("layers.2.mlp.gated.step", 0.02, "Wo", {"quantization"}),  # a range that cuts most values
    ],
)
def test_one_quantized_layer_broken(
    tensor: str, factor: float, part: str, causes: set[str], examined: Examined, graphs: Path
) -> None:
    (fault,) = examined.diagnosis(edited(graphs, INT8, scaled_weight(tensor, factor)), "int8").faults
    assert (fault.stages, fault.kind, fault.part) == (("layers.2.mlp",), "mlp", part)
    assert fault.cause in causes
