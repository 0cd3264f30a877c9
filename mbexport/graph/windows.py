"""Local attention by blocks: which tokens each block of queries sees, and which of them count.

Queries are taken in blocks. A block sees its own tokens and ``half_window`` more on either
side, so block + 2 * half_window keys, whatever the length of the text:

    keys of block 1     |----|--------|----|
    queries      |--block 0--|--block 1--|--block 2--|

A short text is one block of its own length that sees itself. Within those keys, query i
sees key j where |i - j| <= half_window and j is no padding. The keys are gathered by
position; positions before the first and after the last token are clipped into the row and
masked. No tensor has two axes that grow with the length beyond a block.

Of a row of several texts the same holds, but that a query sees keys of its own text only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import onnx_ir as ir

from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.builder import GraphBuilder
from mbexport.graph.rows import PackedRows, Places, Rows, mask_bias


@dataclass(frozen=True)
class BlockSizes:
    """How many queries make a block, and the longest text that is one block by itself.

    ``most_alone`` is at least ``queries``. Both are a matter of speed only.
    """

    queries: int
    most_alone: int


@dataclass(frozen=True)
class Blocks:
    """Queries by blocks and the keys that each sees; ``block`` queries see ``span`` keys.

    query_positions [blocks * block], key_positions [blocks * span]: int64 positions to gather.
    bias [batch * blocks, 1, block, span]: what is added to scores. The shapes are targets of reshapes.
    """

    query_positions: ir.Value
    key_positions: ir.Value
    bias: ir.Value
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


@dataclass(frozen=True)
class Windows(Blocks):
    """Blocks whose number and size follow the length; a short text is one.

    several: bool scalar, whether the text has more than one. order [sequence]: int64 positions.
    """

    several: ir.Value
    order: ir.Value

    def values(self) -> tuple[ir.Value, ...]:
        """All of them, as ``Windows`` takes them."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def join(self, b: GraphBuilder, attended: ir.Value) -> ir.Value:
        """Blocks of queries [batch * blocks, block, ...] -> [batch, sequence, hidden]."""
        rows = b.op("Reshape", attended, self.joined_shape, name="joined_blocks")
        return b.op("Gather", rows, self.order, name="joined", axis=1)  # queries after the end are cut off


@dataclass(frozen=True)
class BlindQueries:
    """Queries deep in padding, that see no key: sees, bool [batch, sequence, 1], is false there.

    What they become matters only to a classifier that pools the first position, padding or not:
    their values have a part in the mean that the first position may take.
    """

    sees: ir.Value

    def fill(self, b: GraphBuilder, attended: ir.Value, v: ir.Value) -> ir.Value:
        """Blind queries take the mean of all values; each [batch, sequence, hidden].

        So does a softmax over equally masked scores, in transformers' eager attention.
        """
        mean = b.op("ReduceMean", v, b.ints(1), name="v_mean", keepdims=1)
        return b.op("Where", self.sees, attended, mean, name="filled")


def build_windows(
    b: GraphBuilder,
    rows: Rows,
    spec: ModelSpec,
    sizes: BlockSizes,
    trailing: tuple[int, ...],
) -> tuple[Windows, ir.Value]:
    """The positions and the mask of all blocks, computed once per call; and whether a query sees a key.

    The latter is bool, of the bias's shape.

    Args:
        b: the graph.
        rows: the batch.
        spec: the model.
        sizes: of the blocks.
        trailing: the axes after the tokens' in what is gathered, e.g. (heads, head_dim).
    """
    batch = b.op("Shape", rows.mask, name="batch", start=0, end=1)
    length = b.op("Shape", rows.mask, name="length", start=1, end=2)
    longer = b.op("Greater", length, b.ints(sizes.most_alone), name="several_blocks")
    several = b.op("Squeeze", longer, b.ints(0), name="several")
    block = b.op("Where", several, b.ints(sizes.queries), length, name="block")
    reach = b.op("Where", several, b.ints(spec.half_window), b.ints(0), name="reach")
    twice = b.op("Add", reach, reach, name="reach_twice")
    span = b.op("Add", block, twice, name="span")
    rounded = b.op("Sub", b.op("Add", length, block, name="length_and_block"), b.ints(1), name="rounded")
    end = b.op("Mul", b.op("Div", rounded, block, name="blocks"), block, name="end")
    last = b.op("Sub", length, b.ints(1), name="last")

    tokens = _range(b, end, "tokens")
    starts = b.op("Slice", tokens, b.ints(0), end, b.ints(0), block, name="starts")  # 0, block, 2 * block, ...
    offsets = b.op("Sub", _range(b, span, "span_range"), reach, name="key_offsets")  # [span]
    wanted = b.op("Add", b.op("Unsqueeze", starts, b.ints(1), name="starts_column"), offsets, name="wanted")
    clipped = b.op("Max", b.op("Min", wanted, last, name="below_end"), b.ints(0), name="clipped")  # [blocks, span]
    inside = b.op("Equal", wanted, clipped, name="inside")

    places = Places(
        queries=b.op("Min", tokens, last, name="query_positions"),
        keys=clipped,
        inside=inside,
        block=block,
        key_rows=b.op("Concat", b.ints(-1, 1, 1), span, name="key_rows", axis=0),
    )
    usable = rows.seen_in_blocks(b, places)
    queries = b.op("Unsqueeze", _range(b, block, "block_range"), b.ints(1), name="query_offsets")  # [block, 1]
    distance = b.op("Abs", b.op("Sub", queries, offsets, name="difference"), name="distance")  # [block, span]
    band = b.op("LessOrEqual", distance, b.ints(spec.half_window), name="band")
    seen = b.op("And", usable, band, name="seen")  # [batch * blocks, 1, block, span]
    windows = Windows(
        several=several,
        query_positions=places.queries,
        key_positions=b.op("Reshape", clipped, b.ints(-1), name="key_positions"),
        order=_range(b, length, "order"),
        bias=mask_bias(b, seen),
        query_shape=b.op("Concat", b.ints(-1), block, b.ints(*trailing), name="query_shape", axis=0),
        key_shape=b.op("Concat", b.ints(-1), span, b.ints(*trailing), name="key_shape", axis=0),
        joined_shape=b.op("Concat", batch, b.ints(-1, spec.hidden_size), name="joined_shape", axis=0),
    )
    return windows, seen


@dataclass(frozen=True)
class FixedWindows(Blocks):
    """Blocks of one size, known beforehand, whatever the length: a short text fills a part of one.

    length: int64 [1].
    """

    length: ir.Value

    def join(self, b: GraphBuilder, attended: ir.Value) -> ir.Value:
        """Blocks of queries [batch * blocks, block, hidden] -> [batch, sequence, hidden]."""
        rows = b.op("Reshape", attended, self.joined_shape, name="joined_blocks")
        return b.op("Slice", rows, b.ints(0), self.length, b.ints(1), name="joined")


def build_fixed_windows(b: GraphBuilder, rows: Rows, spec: ModelSpec, block: int, dtype: ir.DataType) -> FixedWindows:
    """The positions and the mask of all blocks, computed once per call.

    Args:
        b: the graph.
        rows: the batch.
        spec: the model.
        block: queries of a block.
        dtype: element type of the bias.
    """
    span = block + 2 * spec.half_window
    queries, keys = np.arange(block), np.arange(span) - spec.half_window
    batch = b.op("Shape", rows.mask, name="batch", start=0, end=1)
    length = b.op("Shape", rows.mask, name="length", start=1, end=2)
    last = b.op("Sub", length, b.ints(1), name="last")
    blocks = b.op("Div", b.op("Add", length, b.ints(block - 1), name="rounded"), b.ints(block), name="blocks")
    starts = b.op("Mul", _range(b, blocks, "block_numbers"), b.ints(block), name="starts")
    starts = b.op("Unsqueeze", starts, b.ints(1), name="starts_column")  # [blocks, 1]

    stated = b.op("Add", starts, b.constant("query_offsets", queries), name="query_wanted")
    stated = b.op("Min", stated, last, name="query_clipped")
    query_positions = b.op("Reshape", stated, b.ints(-1), name="query_positions")
    wanted = b.op("Add", starts, b.constant("key_offsets", keys), name="wanted")
    clipped = b.op("Max", b.op("Min", wanted, last, name="below_end"), b.ints(0), name="clipped")  # [blocks, span]
    inside = b.op("Equal", wanted, clipped, name="inside")
    places = Places(query_positions, clipped, inside, b.ints(block), b.ints(-1, 1, 1, span))
    usable = rows.seen_in_blocks(b, places)
    band = b.constant("band", np.abs(queries[:, None] - keys) <= spec.half_window)  # [block, span]
    return FixedWindows(
        query_positions=query_positions,
        key_positions=b.op("Reshape", clipped, b.ints(-1), name="key_positions"),
        bias=mask_bias(b, b.op("And", usable, band, name="seen"), dtype),
        query_shape=b.ints(-1, block, spec.hidden_size),
        key_shape=b.ints(-1, span, spec.hidden_size),
        joined_shape=b.op("Concat", batch, b.ints(-1, spec.hidden_size), name="joined_shape", axis=0),
        length=length,
    )


def reads_padding(spec: ModelSpec) -> bool:
    """Whether an output depends on what padding becomes: a classifier pools the first position, padding or not."""
    return spec.head is not None and spec.head.pooling == "cls" and spec.head.task == "text-classification"


def find_blind(b: GraphBuilder, seen: ir.Value, rows: Rows, spec: ModelSpec) -> BlindQueries | None:
    """The queries that see nothing; None where the model never reads what they become, or there are none.

    Args:
        b: the graph.
        seen: whether a query sees a key, as :func:`build_windows` returns it.
        rows: the batch.
        spec: the model.
    """
    if isinstance(rows, PackedRows) or not reads_padding(spec):
        return None
    numbers = b.op("Cast", seen, name="seen_numbers", to=ir.DataType.FLOAT)
    any_seen = b.op("ReduceMax", numbers, b.ints(-1), name="any_seen")
    batch = b.op("Shape", rows.mask, name="seen_batch", start=0, end=1)
    length = b.op("Shape", rows.mask, name="seen_length", start=1, end=2)
    by_text = b.op(
        "Reshape", any_seen, b.op("Concat", batch, b.ints(-1, 1), name="seen_shape", axis=0), name="seen_rows"
    )
    sighted = b.op("Slice", by_text, b.ints(0), length, b.ints(1), name="sighted")
    return BlindQueries(b.op("Cast", sighted, name="sees", to=ir.DataType.BOOL))


def _range(b: GraphBuilder, end: ir.Value, name: str) -> ir.Value:
    """0, 1, ..., end - 1; end [1]."""
    limit = b.op("Squeeze", end, b.ints(0), name=f"{name}_end")
    return b.op("Range", b.constant("zero", np.int64(0)), limit, b.constant("one", np.int64(1)), name=name)


def any_false(b: GraphBuilder, flags: ir.Value, name: str) -> ir.Value:
    """Whether any of the flags, bool of any shape, is false: bool scalar."""
    with b.scope(name):
        numbers = b.op("Cast", flags, name="numbers", to=ir.DataType.INT32)
        least = b.op("ReduceMin", numbers, name="least", keepdims=0)
        return b.op("Not", b.op("Cast", least, name="all", to=ir.DataType.BOOL), name="any_false")
