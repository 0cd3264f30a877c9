"""What the rows of a batch hold: one text each, padded, or several texts each, packed.

A text of a packed row is told by its number in the mask, and attends to itself only. Both kinds say
the same three things: what global attention may see, what a block of local attention may see, and
where a token stands in its text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from mbexport.graph.builder import Dim, GraphBuilder, typed

# What masked scores get added, by element type. Finite: a row with nothing to see stays a number. In FP16
# the sum stays finite too, and far below every real score, while scores are within MOST_SCORE either way.
MASKED = float(np.finfo(np.float32).min)
MASKED_AS = {ir.DataType.FLOAT: MASKED, ir.DataType.FLOAT16: -43_008.0, ir.DataType.BFLOAT16: -1e38}
MOST_SCORE = 20_000.0
NO_TEXT = -1  # the number of a place outside the row


class Rows(Protocol):
    """A batch of rows.

    Attributes:
        mask: [batch, sequence], for its shape.
        text_axes: of an output that belongs to whole texts, before its own last axis.
        positions: int64 [batch, sequence], of tokens in their texts; None where each row counts from 0.
    """

    @property
    def mask(self) -> ir.Value:
        """See above."""

    @property
    def text_axes(self) -> list[Dim]:
        """See above."""

    @property
    def positions(self) -> ir.Value | None:
        """See above."""

    def global_bias(self, b: GraphBuilder, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """What scores of global attention get added, ``dtype`` [batch, 1, 1 or sequence, sequence]."""

    def seen_in_blocks(self, b: GraphBuilder, places: Places) -> ir.Value:
        """Which keys of a block count for a query, near or not: bool, broadcast to [batch * blocks, 1, block, span].

        Args:
            b: the graph.
            places: of the block's queries and keys.
        """


@dataclass(frozen=True)
class Places:
    """Where the queries and keys of all blocks stand in a row.

    ``queries``: int64 [blocks * block]. ``keys``: int64 [blocks, span], clipped into the row; ``inside``,
    bool of that shape, is false for those that were. ``block``: int64 [1], the queries of a block. ``key_rows``: the
    shape to bring marks of keys to, [batch * blocks, 1, 1, span].
    """

    queries: ir.Value
    keys: ir.Value
    inside: ir.Value
    block: ir.Value
    key_rows: ir.Value


@dataclass(frozen=True)
class PaddedRows:
    """A text a row; ``mask``: bool [batch, sequence], true for real tokens."""

    mask: ir.Value
    positions: None = None

    @property
    def text_axes(self) -> list[Dim]:
        """An output of texts has one row for each."""
        return ["batch"]

    def global_bias(self, b: GraphBuilder, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """See :meth:`Rows.global_bias`; the same for every query."""
        return b.op("Unsqueeze", mask_bias(b, self.mask, dtype), b.ints(1, 2), name="bias_keys")

    def seen_in_blocks(self, b: GraphBuilder, places: Places) -> ir.Value:
        """See :meth:`Rows.seen_in_blocks`: all but padding."""
        real = b.op("Gather", self.mask, places.keys, name="real", axis=1)  # [batch, blocks, span]
        usable = b.op("And", real, places.inside, name="usable")
        return b.op("Reshape", usable, places.key_rows, name="usable_rows")


@dataclass(frozen=True)
class PackedRows:
    """Several texts a row, one behind another.

    ``mask``: int64 [batch, sequence], the number of each token's text, of which no two of a row are equal; 0 is
    padding. ``positions``: int64 of the same shape.
    """

    mask: ir.Value
    positions: ir.Value

    @property
    def text_axes(self) -> list[Dim]:
        """An output of texts has a place for each token: that of its text."""
        return ["batch", "sequence"]

    def same_text(self, b: GraphBuilder, name: str) -> ir.Value:
        """bool [batch, sequence, sequence]: whether two tokens are of one text."""
        with b.scope(name):
            queries = b.op("Unsqueeze", self.mask, b.ints(2), name="queries")
            keys = b.op("Unsqueeze", self.mask, b.ints(1), name="keys")
            return b.op("Equal", queries, keys, name="same")

    def global_bias(self, b: GraphBuilder, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        """See :meth:`Rows.global_bias`; padding attends to padding, so that no query sees nothing."""
        bias = mask_bias(b, self.same_text(b, "texts"), dtype)
        return typed(b.op("Unsqueeze", bias, b.ints(1), name="bias_rows"), dtype)

    def seen_in_blocks(self, b: GraphBuilder, places: Places) -> ir.Value:
        """See :meth:`Rows.seen_in_blocks`: tokens of the query's own text."""
        found = b.op("Gather", self.mask, places.keys, name="key_texts", axis=1)  # [batch, blocks, span]
        none = b.constant("no_text", np.int64(NO_TEXT))
        keys = b.op("Where", places.inside, found, none, name="key_texts_inside")
        queries = b.op("Gather", self.mask, places.queries, name="query_texts", axis=1)
        rows = b.op("Concat", b.ints(-1, 1), places.block, b.ints(1), name="query_rows", axis=0)
        return b.op(
            "Equal",
            b.op("Reshape", queries, rows, name="query_text_rows"),  # [batch * blocks, 1, block, 1]
            b.op("Reshape", keys, places.key_rows, name="key_text_rows"),
            name="usable_rows",
        )


def mask_bias(b: GraphBuilder, seen: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    """bool -> ``dtype`` of the same shape: 0 where true, MASKED_AS where false."""
    bias = b.op(
        "Where",
        seen,
        b.constant(f"seen_bias_{dtype.name.lower()}", np.array(0, dtype.numpy())),
        b.constant(f"masked_bias_{dtype.name.lower()}", np.array(MASKED_AS[dtype], dtype.numpy())),
        name="bias",
    )
    return typed(bias, dtype)
