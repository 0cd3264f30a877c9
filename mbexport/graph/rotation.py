"""Rotary positions in plain operators, for graphs that have no operator of their own for them."""

from __future__ import annotations

import onnx_ir as ir

from mbexport.graph.builder import GraphBuilder

Tables = tuple[ir.Value, ir.Value]  # each [sequence, 1, head_dim]


def tables_in_use(b: GraphBuilder, kind: str, attention_mask: ir.Value) -> Tables:
    """[cos, cos] and [-sin, sin] of the positions of a call.

    Args:
        b: the graph.
        kind: ``global`` or ``local``.
        attention_mask: [batch, sequence].
    """
    first, axis = b.ints(0), b.ints(1)
    length = b.op("Shape", attention_mask, name="rope_length", start=1, end=2)
    cos = b.op("Slice", b.weight(f"rope.{kind}.cos"), first, length, first, name="cos")
    sin = b.op("Slice", b.weight(f"rope.{kind}.sin"), first, length, first, name="sin")
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
