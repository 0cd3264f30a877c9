"""The portable dialect: standard ONNX operators only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.builder import GraphBuilder
from mbexport.graph.layers import layer_norm
from mbexport.graph.windows import build_windows, mask_bias


class PortableDialect:
    """See :class:`mbexport.graph.dialect.Dialect`."""

    def __init__(self, b: GraphBuilder, spec: ModelSpec, attention_mask: ir.Value) -> None:
        self._b = b
        self._spec = spec
        self._scale = b.constant("attention_scale", np.float32(spec.head_dim**-0.5))
        self._rope: dict[bool, tuple[ir.Value, ir.Value]] = {}  # by is_global
        if spec.has_local:
            with b.scope("local_attention"):
                self._rope[False] = self._build_rope("local", attention_mask)
                self._windows = build_windows(b, attention_mask, spec, (spec.num_heads, spec.head_dim))
        if spec.has_global:
            with b.scope("global_attention"):
                self._rope[True] = self._build_rope("global", attention_mask)
                # [batch, 1, 1, sequence]
                self._bias = b.op("Unsqueeze", mask_bias(b, attention_mask), b.ints(1, 2), name="bias_rows")

    def _build_rope(self, kind: str, attention_mask: ir.Value) -> tuple[ir.Value, ir.Value]:
        """[cos, cos] and [-sin, sin] of the positions in use, each [sequence, 1, head_dim]."""
        b, first = self._b, self._b.ints(0)
        length = b.op("Shape", attention_mask, name="rope_length", start=1, end=2)
        cos = b.op("Slice", b.weight(f"rope.{kind}.cos"), first, length, first, name="cos")
        sin = b.op("Slice", b.weight(f"rope.{kind}.sin"), first, length, first, name="sin")
        cos = b.op("Concat", cos, cos, name="cos_both", axis=-1)
        sin = b.op("Concat", b.op("Neg", sin, name="sin_negative"), sin, name="sin_both", axis=-1)
        axis = b.ints(1)
        return b.op("Unsqueeze", cos, axis, name="cos_heads"), b.op("Unsqueeze", sin, axis, name="sin_heads")

    def attention(self, qkv: ir.Value, *, is_global: bool) -> ir.Value:
        """See :meth:`mbexport.graph.dialect.Dialect.attention`."""
        b, spec = self._b, self._spec
        hidden, heads, size = spec.hidden_size, spec.num_heads, spec.head_dim
        qk, v = b.multi("Split", qkv, b.ints(2 * hidden, hidden), outputs=2, name="split_qkv", axis=-1)
        # Queries and keys are rotated together: [batch, sequence, 2 * heads, size].
        qk = self._rotate(b.op("Reshape", qk, b.ints(0, 0, 2 * heads, size), name="qk_heads"), is_global)
        q, k = b.multi("Split", qk, outputs=2, name="split_qk", axis=2, num_outputs=2)
        if is_global:
            v = b.op("Reshape", v, b.ints(0, 0, heads, size), name="v_heads")
            attended = self._softmax_attention(q, k, v, self._bias)
            return b.op("Reshape", attended, b.ints(0, 0, hidden), name="out")
        windows = self._windows
        q = windows.queries(b, q)
        k = windows.keys(b, k, "k")
        v_blocks = windows.keys(b, v, "v")
        return windows.join(b, self._softmax_attention(q, k, v_blocks, windows.bias), v)

    def _rotate(self, x: ir.Value, is_global: bool) -> ir.Value:
        """Rotary positions: x * [cos, cos] + [second, first] * [-sin, sin]; the shape stays."""
        b = self._b
        cos, sin = self._rope[is_global]
        first, second = b.multi("Split", x, outputs=2, name="rope_halves", axis=-1, num_outputs=2)
        swapped = b.op("Concat", second, first, name="rope_swapped", axis=-1)
        straight = b.op("Mul", x, cos, name="rope_cos")
        return b.op("Add", straight, b.op("Mul", swapped, sin, name="rope_sin"), name="rope")

    def _softmax_attention(self, q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value) -> ir.Value:
        """q [rows, queries, heads, size], k and v [rows, keys, heads, size] -> as q."""
        b = self._b
        q = b.op("Transpose", b.op("Mul", q, self._scale, name="q_scaled"), name="q", perm=[0, 2, 1, 3])
        k = b.op("Transpose", k, name="k", perm=[0, 2, 3, 1])
        v = b.op("Transpose", v, name="v", perm=[0, 2, 1, 3])
        scores = b.op("Add", b.op("MatMul", q, k, name="scores"), bias, name="scores_masked")
        weights = b.op("Softmax", scores, name="weights", axis=-1)
        return b.op("Transpose", b.op("MatMul", weights, v, name="attended"), name="by_token", perm=[0, 2, 1, 3])

    def add_norm(self, hidden: ir.Value, update: ir.Value, norm: str) -> tuple[ir.Value, ir.Value]:
        """See :meth:`mbexport.graph.dialect.Dialect.add_norm`."""
        total = self._b.op("Add", hidden, update, name=f"add_before_{norm.rsplit('.', 1)[-1]}")
        return layer_norm(self._b, total, norm, self._spec.norm_eps), total
