"""What stands on the encoder. One function a head; each declares the graph's outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mbexport.checkpoint.spec import ClassifierSpec, ModelSpec
from mbexport.graph.builder import GraphBuilder
from mbexport.graph.layers import activation, layer_norm, linear


def add_head(b: GraphBuilder, spec: ModelSpec, hidden: ir.Value, attention_mask: ir.Value) -> None:
    """Declare the outputs of the model's task.

    Args:
        b: the graph.
        spec: the model; its head decides.
        hidden: [batch, sequence, hidden].
        attention_mask: bool [batch, sequence].
    """
    if spec.classifier is None:
        b.output(hidden, "last_hidden_state", ir.DataType.FLOAT, ["batch", "sequence", spec.hidden_size])
    else:
        _sequence_classification(b, spec, spec.classifier, hidden, attention_mask)


def _sequence_classification(
    b: GraphBuilder, spec: ModelSpec, head: ClassifierSpec, hidden: ir.Value, attention_mask: ir.Value
) -> None:
    """logits [batch, labels]: pooled tokens -> dense -> activation -> norm -> classifier."""
    with b.scope("head"):
        if head.pooling == "cls":
            # The first position, as transformers takes it, be it padding or not.
            pooled = b.op("Gather", hidden, b.constant("zero", np.int64(0)), name="first_token", axis=1)
        else:
            pooled = mean_pool(b, hidden, attention_mask)
        dense = activation(b, linear(b, pooled, "head.dense"), head.activation)
        normed = layer_norm(b, dense, "head.norm", spec.norm_eps)
    logits = linear(b, normed, "classifier")
    b.output(logits, "logits", ir.DataType.FLOAT, ["batch", len(head.labels)])


def mean_pool(b: GraphBuilder, hidden: ir.Value, attention_mask: ir.Value) -> ir.Value:
    """Mean over the real tokens, [batch, hidden]; a row that is all padding gives zeros."""
    weights = b.op("Cast", attention_mask, name="token_weights", to=ir.DataType.FLOAT)
    count = b.op("ReduceSum", weights, b.ints(1), name="token_count", keepdims=1)  # [batch, 1]
    count = b.op("Max", count, b.constant("one_float", np.float32(1)), name="token_count_safe")
    column = b.op("Unsqueeze", weights, b.ints(2), name="token_weights_column")
    total = b.op("ReduceSum", b.op("Mul", hidden, column, name="real_tokens"), b.ints(1), name="token_sum", keepdims=0)
    return b.op("Div", total, count, name="mean")
