"""What stands on the encoder: pooling, the prediction head, the last layer, the outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mbexport.checkpoint.head_config import HeadSpec
from mbexport.checkpoint.spec import ModelSpec
from mbexport.checkpoint.weights import EMBEDDINGS
from mbexport.graph.builder import Dim, GraphBuilder
from mbexport.graph.layers import activation, layer_norm, linear

TOKENS: list[Dim] = ["batch", "sequence"]


def add_head(b: GraphBuilder, spec: ModelSpec, hidden: ir.Value, attention_mask: ir.Value) -> None:
    """Declare the outputs of the model's task.

    Args:
        b: the graph.
        spec: the model; its head decides.
        hidden: [batch, sequence, hidden].
        attention_mask: bool [batch, sequence].
    """
    head = spec.head
    if head is None:
        b.output(hidden, "last_hidden_state", ir.DataType.FLOAT, [*TOKENS, spec.hidden_size])
    elif head.task == "question-answering":
        logits = _predict(b, spec, head, hidden)  # [batch, sequence, 2]
        parts = b.multi("Split", logits, outputs=2, name="start_and_end", axis=-1, num_outputs=2)
        for part, name in zip(parts, ("start_logits", "end_logits"), strict=True):
            b.output(b.op("Squeeze", part, b.ints(2), name=name), name, ir.DataType.FLOAT, TOKENS)
    elif head.pooling is None:
        b.output(_predict(b, spec, head, hidden), "logits", ir.DataType.FLOAT, [*TOKENS, head.outputs])
    else:
        with b.scope("head"):
            pooled = _pool(b, head, hidden, attention_mask)
        b.output(_predict(b, spec, head, pooled), "logits", ir.DataType.FLOAT, ["batch", head.outputs])


def add_selecting_head(b: GraphBuilder, spec: ModelSpec, hidden: ir.Value) -> None:
    """Outputs of chosen tokens only: a vocabulary of logits is more work than several layers.

    Declares one more input, ``positions``, int64 [selected]: places of tokens in the batch laid
    out in one row (row * sequence + place). Output: ``logits`` [selected, outputs].
    """
    positions = b.input("positions", ir.DataType.INT64, ["selected"])
    if spec.head is None:
        raise ValueError("a bare encoder has no outputs to select")
    tokens = b.op("Reshape", hidden, b.ints(-1, spec.hidden_size), name="all_tokens")
    selected = b.op("Gather", tokens, positions, name="selected_tokens", axis=0)
    logits = _predict(b, spec, spec.head, selected)
    b.output(logits, "logits", ir.DataType.FLOAT, ["selected", spec.head.outputs])


def _predict(b: GraphBuilder, spec: ModelSpec, head: HeadSpec, x: ir.Value) -> ir.Value:
    """x [..., hidden] -> dense -> activation -> norm -> last layer [..., outputs]."""
    with b.scope("head"):
        dense = activation(b, linear(b, x, "head.dense"), head.activation)
        normed = layer_norm(b, dense, "head.norm", spec.norm_eps)
    if not head.tied:
        return linear(b, normed, head.last_layer)
    with b.scope(head.last_layer):
        return _tied_linear(b, spec, head, normed)


def _tied_linear(b: GraphBuilder, spec: ModelSpec, head: HeadSpec, x: ir.Value) -> ir.Value:
    """x @ embeddings^T (+ bias), the embedding matrix read as it is stored, [vocabulary, hidden]."""
    rows = b.op("Reshape", x, b.ints(-1, spec.hidden_size), name="rows")
    operands = [rows, b.weight(EMBEDDINGS)] + ([b.weight(f"{head.last_layer}.bias")] if head.last_bias else [])
    logits = b.op("Gemm", *operands, name="tied", transB=1)
    leading = b.op("Shape", x, name="leading", start=0, end=-1)
    return b.op("Reshape", logits, b.op("Concat", leading, b.ints(-1), name="shape", axis=0), name="logits")


def _pool(b: GraphBuilder, head: HeadSpec, hidden: ir.Value, attention_mask: ir.Value) -> ir.Value:
    """hidden [batch, sequence, hidden] -> [batch, hidden], as transformers pools for the task."""
    if head.pooling == "mean":
        return mean_pool(b, hidden, attention_mask)
    if head.task != "multiple-choice":
        # The first position, be it padding or not.
        return b.op("Gather", hidden, b.constant("zero", np.int64(0)), name="first_position", axis=1)
    # The first real token.
    places = b.op("ArgMax", b.op("Cast", attention_mask, name="token_numbers", to=ir.DataType.INT32), name="first_real",
                  axis=1, keepdims=1)  # fmt: skip
    return b.op("GatherND", hidden, places, name="first_token", batch_dims=1)


def mean_pool(b: GraphBuilder, hidden: ir.Value, attention_mask: ir.Value) -> ir.Value:
    """Mean over the real tokens, [batch, hidden]; a row that is all padding gives zeros."""
    weights = b.op("Cast", attention_mask, name="token_weights", to=ir.DataType.FLOAT)
    count = b.op("ReduceSum", weights, b.ints(1), name="token_count", keepdims=1)  # [batch, 1]
    count = b.op("Max", count, b.constant("one_float", np.float32(1)), name="token_count_safe")
    column = b.op("Unsqueeze", weights, b.ints(2), name="token_weights_column")
    total = b.op("ReduceSum", b.op("Mul", hidden, column, name="real_tokens"), b.ints(1), name="token_sum", keepdims=0)
    return b.op("Div", total, count, name="mean")
