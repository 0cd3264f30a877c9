"""INT8 graphs for tests of the runtime: those of a bundle, with U8S8 products in the place of FP32 ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from mbexport import manifest as manifests
from mbexport.graph.builder import MICROSOFT
from mbexport.manifest import Graph
from mbexport.writing import sha256

FUSED, SELECTED = "onnx/model_ort.onnx", "onnx/model_ort_selected.onnx"
MARGIN = 1.5  # beyond the largest activation of the few ids that scales are taken from


def add_int8(
    bundle: Path, file: str, gate: str | None = "passed", *, bits: int = 8, selects: bool = False, ids: int = 5000
) -> Graph:
    """Put an INT8 graph for CPUs into a bundle.

    Args:
        bundle: the bundle.
        file: the graph's name, in the folder ``onnx``.
        gate: what its quality gate found.
        bits: of activations.
        selects: of a fill-mask model, the graph that has the third input.
        ids: the size of the vocabulary.
    """
    source = SELECTED if selects else FUSED
    model = ir.load(bundle / source)
    largest = _largest_inputs(bundle / source, [node.inputs[0].name for node in _products(model)], ids)
    for node in _products(model):
        _quantize(model, node, MARGIN * largest[node.inputs[0].name], bits)
    model.opset_imports[MICROSOFT] = 1
    path = bundle / "onnx" / file
    ir.save(model, path)
    graph = Graph(f"onnx/{file}", "int8", "onnxruntime", 23, sha256(path), selects, activation_bits=bits, gate=gate)
    manifests.update(bundle, lambda manifest: manifest.with_graph(graph))
    return graph


def add_entry(bundle: Path, precision: str, gate: str | None = None) -> Graph:
    """Put a graph that engines are built from into a manifest; its file is none."""
    name = f"onnx/model_{precision}_trt.onnx"
    (bundle / name).write_bytes(b"no graph")
    graph = Graph(name, precision, "tensorrt", 23, sha256(bundle / name), gate=gate)
    manifests.update(bundle, lambda manifest: manifest.with_graph(graph))
    return graph


def _products(model: ir.Model) -> list[ir.Node]:
    """Products of activations with a weight of the layers."""
    return [
        node for node in model.graph
        if node.op_type == "MatMul" and node.name.startswith("layers.") and node.inputs[1].const_value is not None
    ]  # fmt: skip


def _largest_inputs(graph: Path, names: list[str], size: int) -> dict[str, float]:
    """The largest absolute value of tensors of a graph, on random ids."""
    model = ir.load(graph)
    values = {value.name: value for node in model.graph for value in node.outputs}
    wanted = dict.fromkeys(names)
    for name in wanted:
        values[name].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(values[name])
    copy = graph.with_name("all_outputs.onnx")
    ir.save(model, copy)
    session = onnxruntime.InferenceSession(copy, providers=["CPUExecutionProvider"])
    copy.unlink()
    ids = np.random.default_rng(0).integers(5, size, (4, 40))
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "positions": np.arange(4)}
    given = {entry.name: inputs[entry.name] for entry in session.get_inputs()}
    return {
        name: float(np.abs(found).max()) for name, found in zip(wanted, session.run(list(wanted), given), strict=True)
    }


def _quantize(model: ir.Model, node: ir.Node, largest: float, bits: int) -> None:
    """QuantizeLinear and MatMulIntegerToFloat in the place of a MatMul; scales of weights by column."""
    (weight,) = (value for value in node.inputs if value is not None and value.const_value is not None)
    values = weight.const_value.numpy()
    scales = np.maximum(np.abs(values).max(axis=0) / 127, 1e-12).astype(np.float32)
    codes = np.rint(values / scales).astype(np.int8)
    step, zero = np.float32(largest / (2 ** (bits - 1) - 1)), np.uint8(2 ** (bits - 1))

    def constant(name: str, array: np.ndarray) -> ir.Value:
        value = ir.Value(name=f"{node.name}/{name}", const_value=ir.tensor(array, name=f"{node.name}/{name}"))
        model.graph.register_initializer(value)
        return value

    step_value, zero_value = constant("step", np.array(step)), constant("zero", np.array(zero))
    # QuantizeLinear saturates at 255, also where activations have 7 bits.
    ends = constant("least", np.array(-largest, np.float32)), constant("most", np.array(largest, np.float32))
    within = ir.Node("", "Clip", [node.inputs[0], *ends], name=f"{node.name}/within")
    activations = ir.Node("", "QuantizeLinear", [within.outputs[0], step_value, zero_value], name=f"{node.name}/codes")
    weights = constant("weight", codes), step_value, constant("scales", scales), zero_value
    product = ir.Node(
        MICROSOFT, "MatMulIntegerToFloat", [activations.outputs[0], *weights], name=f"{node.name}/product"
    )
    for new, name in ((within, "within"), (activations, "codes"), (product, "product")):
        new.outputs[0].name = f"{node.name}/{name}"
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], [within, activations, product], node.outputs, product.outputs
    )
    if not weight.uses():
        model.graph.initializers.pop(weight.name)
