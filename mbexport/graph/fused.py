"""The ONNX Runtime dialect: its fused operators, for its CPU and CUDA providers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.builder import MICROSOFT, GraphBuilder
from mbexport.graph.layers import norm_weights
from mbexport.graph.windows import build_windows

# What the mask channel of a padded key holds. Every score against it is this times the
# attention scale: far below any real score, and finite.
MASK_CHANNEL = -1e30


class FusedDialect:
    """See :class:`mbexport.graph.dialect.Dialect`.

    Global attention carries the padding as one more channel of queries (1) and keys (0 or
    MASK_CHANNEL), values unchanged. Scores of real keys stay exactly what they were, those
    of padding vanish in the softmax, and without a mask operand ONNX Runtime takes its
    flash kernel, which never holds a [sequence, sequence] tensor.
    """

    def __init__(self, b: GraphBuilder, spec: ModelSpec, attention_mask: ir.Value) -> None:
        self._b = b
        self._spec = spec
        self._first_position = b.ints(0)  # one number: positions count up from it
        if spec.has_local:
            with b.scope("local_attention"):
                self._windows = build_windows(b, attention_mask, spec, (spec.hidden_size,))
        if spec.has_global:
            with b.scope("global_attention"):
                self._build_mask_channels(attention_mask)

    def _build_mask_channels(self, attention_mask: ir.Value) -> None:
        """query_channel and key_channel, each [batch, sequence, heads, 1]."""
        b = self._b
        none, padded = b.constant("no_mask", np.float32(0)), b.constant("mask_channel", np.float32(MASK_CHANNEL))
        channel = b.op("Where", attention_mask, none, padded, name="key_mask")
        column = b.op("Unsqueeze", channel, b.ints(2, 3), name="key_mask_column")
        heads = b.ints(1, 1, self._spec.num_heads, 1)
        self._key_channel = b.op("Expand", column, heads, name="key_channel")
        shape = b.op("Shape", self._key_channel, name="channel_shape")
        self._query_channel = b.op("Expand", b.constant("one_float", np.float32(1)), shape, name="query_channel")

    def attention(self, qkv: ir.Value, *, is_global: bool) -> ir.Value:
        """See :meth:`mbexport.graph.dialect.Dialect.attention`."""
        b = self._b
        q, k, v = b.multi("Split", qkv, outputs=3, name="split_qkv", axis=-1, num_outputs=3)
        q, k = self._rotate(q, "q", is_global), self._rotate(k, "k", is_global)
        if is_global:
            q = self._append_channel(q, self._query_channel, "q")
            k = self._append_channel(k, self._key_channel, "k")
            return self._multi_head(q, k, v)
        windows = self._windows
        q = windows.queries(b, q)
        k = windows.keys(b, k, "k")
        v_blocks = windows.keys(b, v, "v")
        return windows.join(b, self._multi_head(q, k, v_blocks, windows.bias), v)

    def _rotate(self, x: ir.Value, name: str, is_global: bool) -> ir.Value:
        kind = "global" if is_global else "local"
        cos, sin = self._b.weight(f"rope.{kind}.cos"), self._b.weight(f"rope.{kind}.sin")
        return self._b.op("RotaryEmbedding", x, self._first_position, cos, sin, name=f"{name}_rope", domain=MICROSOFT)

    def _append_channel(self, x: ir.Value, channel: ir.Value, name: str) -> ir.Value:
        """[batch, sequence, hidden] -> [batch, sequence, heads * (head_dim + 1)]."""
        b, heads, size = self._b, self._spec.num_heads, self._spec.head_dim
        by_head = b.op("Reshape", x, b.ints(0, 0, heads, size), name=f"{name}_heads")
        extended = b.op("Concat", by_head, channel, name=f"{name}_extended", axis=-1)
        return b.op("Reshape", extended, b.ints(0, 0, heads * (size + 1)), name=f"{name}_masked")

    def _multi_head(self, q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value | None = None) -> ir.Value:
        operands = [q, k, v] if bias is None else [q, k, v, None, None, bias]
        return self._b.op(
            "MultiHeadAttention", *operands, name="attended" if bias else "out", domain=MICROSOFT,
            num_heads=self._spec.num_heads, scale=self._spec.head_dim**-0.5,
        )  # fmt: skip

    def add_norm(self, hidden: ir.Value, update: ir.Value, norm: str) -> tuple[ir.Value, ir.Value]:
        """See :meth:`mbexport.graph.dialect.Dialect.add_norm`."""
        b = self._b
        operands = [update, hidden, *norm_weights(b, norm)]
        normed, mean, deviation, total = b.multi(
            "SkipLayerNormalization", *operands, outputs=4, name=norm.rsplit(".", 1)[-1], domain=MICROSOFT,
            epsilon=self._spec.norm_eps,
        )  # fmt: skip
        mean.name = deviation.name = ""  # optional outputs, left out
        return normed, total
