"""Tokens to one vector of a text; sums are float32 whatever the encoder's precision."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mbexport.graph.builder import GraphBuilder
from mbexport.graph.windows import MASKED


def pool(b: GraphBuilder, hidden: ir.Value, attention_mask: ir.Value, kind: str) -> ir.Value:
    """hidden [batch, sequence, hidden] -> [batch, hidden]; padding has no part in it.

    Args:
        b: the graph.
        hidden: vectors of tokens.
        attention_mask: bool [batch, sequence].
        kind: ``first_position`` (be it padding or not), ``cls`` (the first real token), ``last``,
            ``max``, ``mean``, ``mean_sqrt_len``, ``weighted_mean`` (by place from 1), as
            sentence-transformers' Pooling defines them.
    """
    if kind == "first_position":
        return b.op("Gather", hidden, b.constant("zero", np.int64(0)), name="first_position", axis=1)
    if kind == "cls":
        return b.op("GatherND", hidden, _edge(b, attention_mask, last=False), name="first_token", batch_dims=1)
    if kind == "last":
        return b.op("GatherND", hidden, _edge(b, attention_mask, last=True), name="last_token", batch_dims=1)
    if kind == "max":
        column = b.op("Unsqueeze", attention_mask, b.ints(2), name="real_column")
        masked = b.op("Where", column, hidden, b.constant("lowest", np.float32(MASKED)), name="masked_tokens")
        return b.op("ReduceMax", masked, b.ints(1), name="max", keepdims=0)
    weights = b.op("Cast", attention_mask, name="token_weights", to=ir.DataType.FLOAT)  # [batch, sequence]
    if kind == "weighted_mean":
        weights = b.op("Mul", weights, _places(b, attention_mask), name="place_weights")
    return _weighted_mean(b, hidden, weights, square_root=kind == "mean_sqrt_len")


def _edge(b: GraphBuilder, attention_mask: ir.Value, *, last: bool) -> ir.Value:
    """The place of the first or last real token, int64 [batch, 1]."""
    name = "last_real" if last else "first_real"
    numbers = b.op("Cast", attention_mask, name=f"{name}_numbers", to=ir.DataType.INT32)
    return b.op("ArgMax", numbers, name=name, axis=1, keepdims=1, select_last_index=int(last))


def _places(b: GraphBuilder, attention_mask: ir.Value) -> ir.Value:
    """Places counted from 1 at the first real token, float32 [batch, sequence]."""
    length = b.op(
        "Squeeze", b.op("Shape", attention_mask, name="pool_length", start=1, end=2), name="pool_length_scalar"
    )
    counted = b.op(
        "Range", b.constant("one", np.int64(1)), b.op("Add", length, b.constant("one", np.int64(1)), name="pool_end"),
        b.constant("one", np.int64(1)), name="places",
    )  # fmt: skip
    from_first = b.op("Sub", counted, _edge(b, attention_mask, last=False), name="places_from_first")
    return b.op("Cast", from_first, name="places_float", to=ir.DataType.FLOAT)


def _weighted_mean(b: GraphBuilder, hidden: ir.Value, weights: ir.Value, *, square_root: bool) -> ir.Value:
    """sum(weights * hidden) / sum(weights), or over its root; a row that is all padding gives zeros."""
    total_weight = b.op("ReduceSum", weights, b.ints(1), name="weight_sum", keepdims=1)  # [batch, 1]
    total_weight = b.op("Max", total_weight, b.constant("one_float", np.float32(1)), name="weight_sum_safe")
    if square_root:
        total_weight = b.op("Sqrt", total_weight, name="weight_sum_root")
    column = b.op("Unsqueeze", weights, b.ints(2), name="weights_column")
    total = b.op("ReduceSum", b.op("Mul", hidden, column, name="weighted"), b.ints(1), name="token_sum", keepdims=0)
    return b.op("Div", total, total_weight, name="mean")
