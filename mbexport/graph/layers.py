"""Building blocks that every part of the model uses: linear, norm, activation."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mbexport.errors import GraphError
from mbexport.graph.builder import GraphBuilder


def linear(b: GraphBuilder, x: ir.Value, path: str) -> ir.Value:
    """``x @ weight (+ bias)``; x [..., in] -> [..., out].

    The weight was stored transposed, [in, out], as ONNX MatMul multiplies it.
    """
    name = path.rsplit(".", 1)[-1]
    y = b.op("MatMul", x, b.weight(f"{path}.weight"), name=name)
    if b.has_weight(f"{path}.bias"):
        y = b.op("Add", y, b.weight(f"{path}.bias"), name=f"{name}_bias")
    return y


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
