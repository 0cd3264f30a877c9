"""Building blocks that every part of the model uses: linear, norm, activation."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from mbexport.checkpoint.weights import EMBEDDINGS
from mbexport.errors import GraphError
from mbexport.graph.builder import GraphBuilder, element_type, typed

EMBEDDING_SCALES = "embeddings.scale"  # a factor for each row, where they were prepared


def scaled(b: GraphBuilder, x: ir.Value, site: str) -> ir.Value:
    """x times the factors that were prepared for ``site``, where there are any; float32, the shape stays.

    Most factors are powers of two that keep half-precision values in range, and have their
    reciprocals in the weights beside them: the model stays exactly what it was.
    """
    if not b.has_weight(f"{site}.scale"):
        return x
    return b.op("Mul", x, b.weight(f"{site}.scale"), name=f"{site.rsplit('.', 1)[-1]}_scaled")


def product(b: GraphBuilder, op_type: str, x: ir.Value, weight: ir.Value, *, name: str, **attributes: Any) -> ir.Value:
    """A matrix product in the element type of its weight; x and the result are float32."""
    dtype = element_type(weight)
    return b.widen(typed(b.op(op_type, b.cast(x, dtype), weight, name=name, **attributes), dtype))


def biased(b: GraphBuilder, x: ir.Value, path: str, *, name: str) -> ir.Value:
    """x plus the bias of a module, where it has one; float32 [..., out], the shape stays.

    Args:
        b: the graph.
        x: what the module's product gave.
        path: the module.
        name: of the product's node, which the sum's begins with.
    """
    if not b.has_weight(f"{path}.bias"):
        return x
    return b.op("Add", x, b.weight(f"{path}.bias"), name=f"{name}_bias")


def embed(b: GraphBuilder, input_ids: ir.Value) -> ir.Value:
    """Rows of the embedding matrix, float32 [batch, sequence, hidden]."""
    table = b.weight(EMBEDDINGS)
    rows = b.widen(typed(b.op("Gather", table, input_ids, name="tok_embeddings"), element_type(table)))
    if not b.has_weight(EMBEDDING_SCALES):
        return rows
    scales = b.op("Gather", b.weight(EMBEDDING_SCALES), input_ids, name="row_scales")
    return b.op("Mul", rows, b.op("Unsqueeze", scales, b.ints(-1), name="row_scales_column"), name="rows_scaled")


def linear(b: GraphBuilder, x: ir.Value, path: str, matrix: ir.Value | None = None) -> ir.Value:
    """``x @ weight (+ bias)``; float32 [..., in] -> float32 [..., out].

    The weight was stored transposed, [in, out], as ONNX MatMul multiplies it; ``matrix`` is multiplied
    in its place, in its own element type.
    """
    name = path.rsplit(".", 1)[-1]
    matrix = b.weight(f"{path}.weight") if matrix is None else matrix
    return biased(b, scaled(b, product(b, "MatMul", x, matrix, name=name), path), path, name=name)


def exact_linear(b: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
    """As :func:`linear`, in float32 without a matrix product: not every GPU has one (Turing under TensorRT-RTX).

    For a few outputs. TensorRT sums products as it makes them; ONNX Runtime holds all of them, [..., in, out].
    """
    name = path.rsplit(".", 1)[-1]
    products = b.op(
        "Mul", b.op("Unsqueeze", x, b.ints(-1), name=f"{name}_column"), b.weight(f"{path}.weight"), name=name
    )
    return biased(b, b.op("ReduceSum", products, b.ints(-2), name=f"{name}_sum", keepdims=0), path, name=name)


def layer_norm(b: GraphBuilder, x: ir.Value, path: str, eps: float) -> ir.Value:
    """Layer normalization over the last axis, with or without a bias; the shape stays."""
    weights = [b.weight(f"{path}.{kind}") for kind in ("weight", "bias") if b.has_weight(f"{path}.{kind}")]
    return b.op("LayerNormalization", x, *weights, name=path.rsplit(".", 1)[-1], axis=-1, epsilon=eps)


def activation(b: GraphBuilder, x: ir.Value, kind: str) -> ir.Value:
    """One of the functions of ``mbexport.checkpoint.spec.ACTIVATIONS``; the shape stays."""
    if kind == "gelu":
        return b.op("Gelu", x, name="act")
    if kind == "gelu_tanh":
        return b.op("Gelu", x, name="act", approximate="tanh")
    if kind in ("relu", "tanh", "sigmoid"):
        return b.op(kind.capitalize(), x, name="act")
    if kind in ("silu", "quick_gelu"):  # x * sigmoid(x), and x * sigmoid(1.702 x)
        inner = x
        if kind == "quick_gelu":
            inner = b.op("Mul", x, b.constant("quick_gelu_factor", np.float32(1.702)), name="act_scaled")
        return b.op("Mul", x, b.op("Sigmoid", inner, name="act_sigmoid"), name="act")
    raise GraphError(f"no graph for the activation {kind}")
