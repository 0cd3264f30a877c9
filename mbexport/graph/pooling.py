"""Tokens to one vector of a text; sums are float32 whatever the encoder's precision, but those of packed rows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mbexport.errors import GraphError
from mbexport.graph.builder import GraphBuilder, typed
from mbexport.graph.rows import MASKED, PackedRows, Rows

FROM_ONE_TOKEN = ("first_position", "cls", "last")


def pool(b: GraphBuilder, hidden: ir.Value, rows: Rows, kind: str) -> ir.Value:
    """hidden [batch, sequence, hidden] -> [batch, hidden]; padding has no part in it.

    Of packed rows [batch, sequence, hidden]: at each token the vector of its text; a kind that takes one
    token's leaves them as they are, for the caller to read at that token.

    Args:
        b: the graph.
        hidden: vectors of tokens.
        rows: the batch.
        kind: ``first_position`` (be it padding or not), ``cls`` (the first real token), ``last``,
            ``max``, ``mean``, ``mean_sqrt_len``, ``weighted_mean`` (by place from 1), as
            sentence-transformers' Pooling defines them.

    Raises:
        GraphError: the rows are packed, and the kind is ``max``.
    """
    if isinstance(rows, PackedRows):
        return hidden if kind in FROM_ONE_TOKEN else _pool_texts(b, hidden, rows, kind)
    attention_mask = rows.mask
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


def _pool_texts(b: GraphBuilder, hidden: ir.Value, rows: PackedRows, kind: str) -> ir.Value:
    """The mean of each token's own text, [batch, sequence, hidden], by one product with what is of one text."""
    if kind not in ("mean", "mean_sqrt_len", "weighted_mean"):
        raise GraphError(f"{kind} pooling has no graph of packed rows")
    same = rows.same_text(b, "pooled_texts")
    counted = b.op("Cast", same, name="counted", to=ir.DataType.FLOAT)
    if kind == "weighted_mean":
        numbers = b.op("Add", rows.positions, b.ints(1), name="places")
        places = b.op("Cast", numbers, name="places_float", to=ir.DataType.FLOAT)
        counted = b.op(
            "Mul", counted, b.op("Unsqueeze", places, b.ints(1), name="places_by_key"), name="counted_places"
        )
        hidden = b.op("Mul", hidden, b.op("Unsqueeze", places, b.ints(2), name="places_column"), name="weighted")
    total = b.op("ReduceSum", counted, b.ints(-1), name="weight_sum", keepdims=1)  # [batch, sequence, 1]
    if kind == "mean_sqrt_len":
        total = b.op("Sqrt", total, name="weight_sum_root")
    return b.op("Div", _sums(b, same, hidden), total, name="mean")


def _sums(b: GraphBuilder, same: ir.Value, hidden: ir.Value) -> ir.Value:
    """same, bool [batch, sequence, sequence], by hidden [batch, sequence, hidden]: sums over each token's text.

    In a half-precision graph the product is in half precision, as not every GPU has others: of each channel as
    shares of its largest magnitude, so that a sum is no larger than the number of tokens.
    """
    dtype = b.product_type
    zero, one = (
        b.constant(f"{name}_{dtype.name.lower()}", np.array(n, dtype.numpy())) for n, name in enumerate(("none", "all"))
    )
    members = typed(b.op("Where", same, one, zero, name="members"), dtype)
    if dtype == ir.DataType.FLOAT:
        return b.op("MatMul", members, hidden, name="token_sum")
    largest = b.op("ReduceMax", b.op("Abs", hidden, name="sizes"), b.ints(1), name="largest", keepdims=1)
    largest = b.op("Max", largest, b.constant("smallest_channel", np.float32(1e-30)), name="channels")
    shares = b.cast(b.op("Div", hidden, largest, name="shares"), dtype)
    sums = b.widen(typed(b.op("MatMul", members, shares, name="share_sum"), dtype))
    return b.op("Mul", sums, largest, name="token_sum")
