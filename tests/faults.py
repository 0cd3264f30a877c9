"""Graphs with one deliberate fault each, made by an edit of the file: what a careless exporter might have written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tests.bundles import rehash

Edit = Callable[[ir.Model], None]
OF_ATTENTION = ("Attention", "Windows", "Mask")  # how the names of such functions end


def edit(graph: Path, change: Edit) -> None:
    """Change a graph in place; its weights stay where they are."""
    model = ir.load(graph)
    change(model)
    proto = ir.to_proto(model)
    graph.write_bytes(proto.SerializeToString())
    rehash(graph)


def node(model: ir.Model, name: str) -> ir.Node:
    """The node of a name, of whatever branch."""
    return next(found for found in model.graph.all_nodes() if found.name == name)


def insert(model: ir.Model, op: str, inputs: list[ir.Value], before: ir.Node) -> ir.Value:
    """A new node's result."""
    made = ir.node(op, inputs)
    made.outputs[0].name = f"edited_{op}_{len(list(model.graph.all_nodes()))}"
    before.graph.insert_before(before, made)
    return made.outputs[0]


def constant(model: ir.Model, array: np.ndarray) -> ir.Value:
    """A tensor within the graph."""
    name = f"edited_{len(model.graph.initializers)}"
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    model.graph.initializers.add(value)
    return value


def without_mask(model: ir.Model) -> None:
    """Every place counts as a real token."""
    entered = next(value for value in model.graph.inputs if value.name == "attention_mask")
    for user in [user for user, _ in entered.uses()]:
        if user.op_type == "Cast":
            ones = insert(model, "Equal", [entered, entered], user)
            user.outputs[0].replace_all_uses_with(ones)


def without_norm(layer: int) -> Edit:
    """What enters the MLP's normalization passes it by."""

    def change(model: ir.Model) -> None:
        for found in model.graph:
            if found.name == f"layers.{layer}/mlp_norm":
                found.outputs[0].replace_all_uses_with(found.inputs[0])
            elif (found.op_type, found.name) == ("AddNorm", f"layers.{layer}/attn_residual"):
                found.outputs[1].replace_all_uses_with(found.outputs[0])

    return change


def mean_over_padding(model: ir.Model) -> None:
    """The head's mean takes padding for text."""
    weights = node(model, "head/token_weights")
    mask = weights.inputs[0]
    weights.replace_input_with(0, insert(model, "Or", [mask, insert(model, "Not", [mask], weights)], weights))


def keys_one_place_on(model: ir.Model) -> None:
    """Rotary positions of keys begin at 1; in ONNX Runtime's dialect, where they have an operator."""
    for function in attention_without_kernels(model):
        for found in function:
            if found.op_type == "RotaryEmbedding" and found.name.endswith("k_rope"):
                one = ir.node("Constant", [], {"value": ir.tensor(np.array([1], np.int64))}, name="edited_one")
                one.outputs[0].name = "edited_one"
                function.insert_before(found, one)
                found.replace_input_with(1, one.outputs[0])


def attention_without_kernels(model: ir.Model) -> list[ir.Function]:
    """The functions of attention, by names that no kernel has: their bodies are computed."""
    functions = [function for function in model.functions.values() if function.name.endswith(OF_ATTENTION)]
    for function in functions:
        del model.functions[function.identifier()]
        function.name = f"Edited{function.name}"
        model.functions[function.identifier()] = function
    for found in model.graph.all_nodes():
        if found.domain == "mbexport" and found.op_type.endswith(OF_ATTENTION):
            found.op_type = f"Edited{found.op_type}"
    return functions


def overflowing(layer: int, exponent: int = 14) -> Edit:
    """What enters the MLP's last product is too large for FP16, and its result as much too small."""

    def change(model: ir.Model) -> None:
        product = node(model, f"layers.{layer}/mlp/Wo")
        narrow = product.inputs[0].producer()
        large = insert(model, "Mul", [narrow.inputs[0], constant(model, np.float32(2**exponent))], narrow)
        narrow.replace_input_with(0, large)
        widened = next(user for user, _ in product.outputs[0].uses() if user.op_type == "Cast")
        uses = list(widened.outputs[0].uses())
        small = ir.node("Mul", [widened.outputs[0], constant(model, np.float32(2**-exponent))])
        small.outputs[0].name = "edited_small"
        widened.graph.insert_after(widened, small)
        for user, index in uses:
            user.replace_input_with(index, small.outputs[0])

    return change


def scaled_weight(name: str, factor: float) -> Edit:
    """A small tensor of the graph (a scale, a step) is another one."""

    def change(model: ir.Model) -> None:
        value = model.graph.initializers[name]
        array = (value.const_value.numpy() * factor).astype(value.const_value.numpy().dtype)
        value.replace_all_uses_with(constant(model, array))

    return change
