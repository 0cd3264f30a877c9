"""Rotary positions in plain operators, for graphs that have no operator of their own for them."""

from __future__ import annotations

import onnx_ir as ir

from mbexport.graph.builder import GraphBuilder
from mbexport.graph.rope import FINE
from mbexport.graph.rows import Rows

Tables = tuple[ir.Value, ir.Value]  # each [sequence, 1, head_dim], or with the batch before it


def cosines_and_sines(b: GraphBuilder, kind: str, attention_mask: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Tables of at least the positions of a call, each [positions, head_dim / 2].

    Where tables were prepared in two parts (``mbexport.graph.rope.split_tables``), they are put together
    for the blocks that the call has: cos(a + b) = cos a cos b - sin a sin b, and so on.

    Args:
        b: the graph.
        kind: ``global`` or ``local``.
        attention_mask: [batch, sequence].
    """
    if b.has_weight(f"rope.{kind}.cos"):
        return b.weight(f"rope.{kind}.cos"), b.weight(f"rope.{kind}.sin")
    length = b.op("Shape", attention_mask, name="rope_places", start=1, end=2)
    further = b.op("Add", length, b.ints(FINE - 1), name="rope_further")
    blocks = b.op("Div", further, b.ints(FINE), name="rope_blocks")
    fine_cos, fine_sin = (b.weight(f"rope.{kind}.fine.{name}") for name in ("cos", "sin"))
    coarse_cos, coarse_sin = (
        b.op("Slice", b.weight(f"rope.{kind}.coarse.{name}"), b.ints(0), blocks, b.ints(0), name=f"rope_{name}s")
        for name in ("cos", "sin")
    )  # [blocks, 1, head_dim / 2]

    def times(first: ir.Value, second: ir.Value, name: str) -> ir.Value:
        return b.op("Mul", first, second, name=name)

    cos = b.op("Sub", times(coarse_cos, fine_cos, "cos_cos"), times(coarse_sin, fine_sin, "sin_sin"), name="cos_sum")
    sin = b.op("Add", times(coarse_sin, fine_cos, "sin_cos"), times(coarse_cos, fine_sin, "cos_sin"), name="sin_sum")
    rows = b.op("Concat", b.ints(-1), b.op("Shape", fine_cos, name="rope_shape", start=1), name="rope_rows", axis=0)
    return b.op("Reshape", cos, rows, name="cos_rows"), b.op("Reshape", sin, rows, name="sin_rows")


def tables_in_use(b: GraphBuilder, kind: str, rows: Rows) -> Tables:
    """[cos, cos] and [-sin, sin] of the positions of a call.

    Args:
        b: the graph.
        kind: ``global`` or ``local``.
        rows: the batch.
    """
    cos, sin = cosines_and_sines(b, kind, rows.mask)
    if rows.positions is None:
        first, axis = b.ints(0), b.ints(1)
        length = b.op("Shape", rows.mask, name="rope_length", start=1, end=2)
        cos = b.op("Slice", cos, first, length, first, name="cos")
        sin = b.op("Slice", sin, first, length, first, name="sin")
    else:
        axis = b.ints(2)
        cos = b.op("Gather", cos, rows.positions, name="cos", axis=0)
        sin = b.op("Gather", sin, rows.positions, name="sin", axis=0)
    cos = b.op("Concat", cos, cos, name="cos_both", axis=-1)
    sin = b.op("Concat", b.op("Neg", sin, name="sin_negative"), sin, name="sin_both", axis=-1)
    return b.op("Unsqueeze", cos, axis, name="cos_heads"), b.op("Unsqueeze", sin, axis, name="sin_heads")


def rotate(b: GraphBuilder, x: ir.Value, tables: Tables) -> ir.Value:
    """x * [cos, cos] + [second half, first half] * [-sin, sin]; x [batch, sequence, heads, head_dim]."""
    cos, sin = tables
    first, second = b.multi("Split", x, outputs=2, name="halves", axis=-1, num_outputs=2)
    swapped = b.op("Concat", second, first, name="swapped", axis=-1)
    straight = b.op("Mul", x, cos, name="straight")
    return b.op("Add", straight, b.op("Mul", swapped, sin, name="crossed"), name="rotated")
