"""Local attention by blocks: which tokens each block of queries sees, and which of them count.

Queries are taken in blocks of ``block`` tokens. A block sees its own tokens and
``block / 2`` more on either side, so 2 * block keys, whatever the length of the text:

    keys of block 1     |----|--------|----|
    queries      |--block 0--|--block 1--|--block 2--|

Within those keys, query i sees key j where |i - j| <= half_window and j is no padding. The
keys are gathered by position; positions before the first and after the last token are
clipped into the text and masked. No tensor has two axes that grow with the length.
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
    """Queries per block: half a block on either side must cover the window."""
    return max(SMALLEST_BLOCK, 2 * half_window)


@dataclass(frozen=True)
class Windows:
    """What all local layers share.

    query_positions [blocks * block], key_positions [blocks * 2 * block]: int64 positions to
    gather; bias [batch * blocks, 1, block, 2 * block]: 0 where a query sees a key, else
    MASKED; sighted: bool [batch, sequence, 1], false for a query that sees no key;
    joined_shape: [batch, -1, hidden]; length [1]: tokens per row of the input.
    """

    block: int
    query_positions: ir.Value
    key_positions: ir.Value
    bias: ir.Value
    sighted: ir.Value
    joined_shape: ir.Value
    length: ir.Value

    def queries(self, b: GraphBuilder, x: ir.Value, *trailing: int) -> ir.Value:
        """x [batch, sequence, ...] -> [batch * blocks, block, *trailing]."""
        gathered = b.op("Gather", x, self.query_positions, name="q_gathered", axis=1)
        return b.op("Reshape", gathered, b.ints(-1, self.block, *trailing), name="q_blocks")

    def keys(self, b: GraphBuilder, x: ir.Value, name: str, *trailing: int) -> ir.Value:
        """x [batch, sequence, ...] -> [batch * blocks, 2 * block, *trailing]."""
        gathered = b.op("Gather", x, self.key_positions, name=f"{name}_gathered", axis=1)
        return b.op("Reshape", gathered, b.ints(-1, 2 * self.block, *trailing), name=f"{name}_blocks")

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


def build_windows(b: GraphBuilder, attention_mask: ir.Value, spec: ModelSpec) -> Windows:
    """The positions and the mask of all blocks, computed once per call.

    Args:
        b: the graph.
        attention_mask: bool [batch, sequence], true for real tokens.
        spec: the model.
    """
    block = block_size(spec.half_window)
    reach = block // 2
    batch = b.op("Shape", attention_mask, name="batch", start=0, end=1)  # [1]
    length = b.op("Shape", attention_mask, name="length", start=1, end=2)  # [1]
    last = b.op("Sub", length, b.ints(1), name="last")
    blocks = b.op("Div", b.op("Add", last, b.ints(block), name="rounded"), b.ints(block), name="blocks")
    end = b.op("Squeeze", b.op("Mul", blocks, b.ints(block), name="end"), b.ints(0), name="end_scalar")
    last = b.op("Squeeze", last, b.ints(0), name="last_scalar")
    zero = b.constant("zero", np.int64(0))

    tokens = b.op("Range", zero, end, b.constant("one", np.int64(1)), name="tokens")
    query_positions = b.op("Min", tokens, last, name="query_positions")

    starts = b.op("Range", zero, end, b.constant("block_step", np.int64(block)), name="starts")
    offsets = b.constant("key_offsets", np.arange(-reach, 2 * block - reach, dtype=np.int64))
    wanted = b.op("Add", b.op("Unsqueeze", starts, b.ints(1), name="starts_column"), offsets, name="wanted")
    clipped = b.op("Max", b.op("Min", wanted, last, name="below_end"), zero, name="clipped")  # [blocks, 2 * block]
    inside = b.op("Equal", wanted, clipped, name="inside")

    real = b.op("Gather", attention_mask, clipped, name="real", axis=1)  # [batch, blocks, 2 * block]
    usable = b.op("And", real, inside, name="usable")
    usable = b.op("Reshape", usable, b.ints(-1, 1, 1, 2 * block), name="usable_rows")
    distance = np.arange(block)[:, None] + reach - np.arange(2 * block)[None, :]
    band = b.constant("band", (np.abs(distance) <= spec.half_window)[None, None])  # [1, 1, block, 2 * block]
    seen = b.op("And", usable, band, name="seen")  # [batch * blocks, 1, block, 2 * block]
    return Windows(
        block=block,
        query_positions=query_positions,
        key_positions=b.op("Reshape", clipped, b.ints(-1), name="key_positions"),
        bias=mask_bias(b, seen),
        sighted=_sighted(b, seen, batch, length),
        joined_shape=b.op("Concat", batch, b.ints(-1, spec.hidden_size), name="joined_shape", axis=0),
        length=length,
    )


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
