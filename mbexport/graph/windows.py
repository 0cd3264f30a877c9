"""Local attention by blocks: which tokens each block of queries sees, and which of them count.

Queries are taken in blocks of ``block`` tokens. A block sees its own tokens and
``block / 2`` more on either side, so 2 * block keys, whatever the length of the text:

    keys of block 1     |----|--------|----|
    queries      |--block 0--|--block 1--|--block 2--|

A text no longer than a block is one block of its own length that sees itself. Within those
keys, query i sees key j where |i - j| <= half_window and j is no padding. The keys are
gathered by position; positions before the first and after the last token are clipped into
the text and masked. No tensor has two axes that grow with the length beyond a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.builder import GraphBuilder

SMALLEST_BLOCK = 128
MASKED = float(np.finfo(np.float32).min)  # finite: a row with nothing to see stays a number


def block_size(half_window: int) -> int:
    """Queries per block of a text that has several: half a block on either side must cover the window."""
    return max(SMALLEST_BLOCK, 2 * half_window)


@dataclass(frozen=True)
class Windows:
    """What all local layers share; ``span`` is the number of keys that a block sees.

    query_positions [blocks * block], key_positions [blocks * span]: int64 positions to gather;
    bias [batch * blocks, 1, block, span]: 0 where a query sees a key, else MASKED; sighted:
    bool [batch, sequence, 1], false for a query that sees no key; length [1]: tokens per row of
    the input; the shapes are targets of reshapes.
    """

    query_positions: ir.Value
    key_positions: ir.Value
    bias: ir.Value
    sighted: ir.Value
    length: ir.Value
    query_shape: ir.Value
    key_shape: ir.Value
    joined_shape: ir.Value

    def queries(self, b: GraphBuilder, x: ir.Value) -> ir.Value:
        """x [batch, sequence, ...] -> [batch * blocks, block, ...]."""
        gathered = b.op("Gather", x, self.query_positions, name="q_gathered", axis=1)
        return b.op("Reshape", gathered, self.query_shape, name="q_blocks")

    def keys(self, b: GraphBuilder, x: ir.Value, name: str) -> ir.Value:
        """x [batch, sequence, ...] -> [batch * blocks, span, ...]."""
        gathered = b.op("Gather", x, self.key_positions, name=f"{name}_gathered", axis=1)
        return b.op("Reshape", gathered, self.key_shape, name=f"{name}_blocks")

    def join(self, b: GraphBuilder, attended: ir.Value, v: ir.Value) -> ir.Value:
        """Blocks of queries [batch * blocks, block, ...] -> [batch, sequence, hidden].

        A query that sees no key stands deep in padding. It takes the mean of all values v
        [batch, sequence, hidden], as a softmax over equally masked scores gives in
        transformers' eager attention: pooling reads such a query where a text is padded on
        the left.
        """
        rows = b.op("Reshape", attended, self.joined_shape, name="joined_blocks")
        rows = b.op("Slice", rows, b.ints(0), self.length, b.ints(1), name="joined")
        mean = b.op("ReduceMean", v, b.ints(1), name="v_mean", keepdims=1)
        return b.op("Where", self.sighted, rows, mean, name="out")


def build_windows(b: GraphBuilder, attention_mask: ir.Value, spec: ModelSpec, trailing: tuple[int, ...]) -> Windows:
    """The positions and the mask of all blocks, computed once per call.

    Args:
        b: the graph.
        attention_mask: bool [batch, sequence], true for real tokens.
        spec: the model.
        trailing: the axes after the tokens' in what is gathered, e.g. (heads, head_dim).
    """
    largest = block_size(spec.half_window)
    batch = b.op("Shape", attention_mask, name="batch", start=0, end=1)
    length = b.op("Shape", attention_mask, name="length", start=1, end=2)
    block = b.op("Min", length, b.ints(largest), name="block")
    several = b.op("Greater", length, block, name="several_blocks")
    reach = b.op("Where", several, b.ints(largest // 2), b.ints(0), name="reach")
    twice = b.op("Add", reach, reach, name="reach_twice")
    span = b.op("Add", block, twice, name="span")
    rounded = b.op("Sub", b.op("Add", length, block, name="length_and_block"), b.ints(1), name="rounded")
    end = b.op("Mul", b.op("Div", rounded, block, name="blocks"), block, name="end")
    last = b.op("Sub", length, b.ints(1), name="last")

    tokens = _range(b, end, "tokens")
    query_positions = b.op("Min", tokens, last, name="query_positions")
    starts = b.op("Slice", tokens, b.ints(0), end, b.ints(0), block, name="starts")  # 0, block, 2 * block, ...
    offsets = b.op("Sub", _range(b, span, "span_range"), reach, name="key_offsets")  # [span]
    wanted = b.op("Add", b.op("Unsqueeze", starts, b.ints(1), name="starts_column"), offsets, name="wanted")
    clipped = b.op("Max", b.op("Min", wanted, last, name="below_end"), b.ints(0), name="clipped")  # [blocks, span]
    inside = b.op("Equal", wanted, clipped, name="inside")

    real = b.op("Gather", attention_mask, clipped, name="real", axis=1)  # [batch, blocks, span]
    rows = b.op("Concat", b.ints(-1, 1, 1), span, name="usable_shape", axis=0)
    usable = b.op("Reshape", b.op("And", real, inside, name="usable"), rows, name="usable_rows")
    queries = b.op("Unsqueeze", _range(b, block, "block_range"), b.ints(1), name="query_offsets")  # [block, 1]
    distance = b.op("Abs", b.op("Sub", queries, offsets, name="difference"), name="distance")  # [block, span]
    band = b.op("LessOrEqual", distance, b.ints(spec.half_window), name="band")
    seen = b.op("And", usable, band, name="seen")  # [batch * blocks, 1, block, span]
    return Windows(
        query_positions=query_positions,
        key_positions=b.op("Reshape", clipped, b.ints(-1), name="key_positions"),
        bias=mask_bias(b, seen),
        sighted=_sighted(b, seen, batch, length),
        length=length,
        query_shape=b.op("Concat", b.ints(-1), block, b.ints(*trailing), name="query_shape", axis=0),
        key_shape=b.op("Concat", b.ints(-1), span, b.ints(*trailing), name="key_shape", axis=0),
        joined_shape=b.op("Concat", batch, b.ints(-1, spec.hidden_size), name="joined_shape", axis=0),
    )


def _range(b: GraphBuilder, end: ir.Value, name: str) -> ir.Value:
    """0, 1, ..., end - 1; end [1]."""
    limit = b.op("Squeeze", end, b.ints(0), name=f"{name}_end")
    return b.op("Range", b.constant("zero", np.int64(0)), limit, b.constant("one", np.int64(1)), name=name)


def _sighted(b: GraphBuilder, seen: ir.Value, batch: ir.Value, length: ir.Value) -> ir.Value:
    """seen [batch * blocks, 1, block, 2 * block] -> whether a query sees any key, [batch, sequence, 1]."""
    any_seen = b.op(
        "ReduceMax", b.op("Cast", seen, name="seen_number", to=ir.DataType.FLOAT), b.ints(-1), name="any_seen"
    )
    rows = b.op("Concat", batch, b.ints(-1, 1), name="sighted_shape", axis=0)
    by_text = b.op("Reshape", any_seen, rows, name="any_seen_rows")
    by_text = b.op("Slice", by_text, b.ints(0), length, b.ints(1), name="any_seen_tokens")
    return b.op("Cast", by_text, name="sighted", to=ir.DataType.BOOL)


def mask_bias(b: GraphBuilder, seen: ir.Value) -> ir.Value:
    """bool -> float32 of the same shape: 0 where true, MASKED where false."""
    return b.op(
        "Where",
        seen,
        b.constant("seen_bias", np.float32(0)),
        b.constant("masked_bias", np.float32(MASKED)),
        name="bias",
    )
