"""The ONNX Runtime dialect: the operators that are fastest there, some of them its own."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from mbexport.checkpoint.spec import ModelSpec
from mbexport.errors import GraphError
from mbexport.graph.builder import MICROSOFT, GraphBuilder
from mbexport.graph.products import IntegerProducts, Products
from mbexport.graph.rotation import cosines_and_sines
from mbexport.graph.rows import PaddedRows, Rows
from mbexport.graph.windows import BlockSizes, any_false, build_windows, find_blind

# What the mask channel of a padded key holds. Every score against it is this times the
# attention scale: far below any real score, and finite.
MASK_CHANNEL = -1e30
LONGEST_WITH_SCORES = 1024  # tokens; global attention beyond holds no [sequence, sequence] tensor
SIZES = BlockSizes(queries=64, most_alone=256)  # measured; benchmarks/NOTES.md has the figures


class FusedDialect:
    """See :class:`mbexport.graph.dialect.Dialect`.

    Local layers, and global ones of texts up to LONGEST_WITH_SCORES, take the standard
    Attention with a bias. Longer texts take MultiHeadAttention, which without a mask operand
    is a flash kernel. Their padding is one more channel of queries (1) and keys (0 or
    MASK_CHANNEL), values unchanged: scores of real keys stay what they were, those of padding
    vanish in the softmax. Without padding there is no such channel.
    """

    opset: ClassVar[int] = 23  # the first with Attention; ONNX Runtime 1.23 reads it
    products: ClassVar[type[Products]] = IntegerProducts

    def __init__(self, b: GraphBuilder, spec: ModelSpec, rows: Rows) -> None:
        if not isinstance(rows, PaddedRows):
            raise GraphError("packed rows are for GPUs; on a CPU they gain nothing, and this dialect is for those")
        attention_mask = rows.mask
        self._b = b
        self._spec = spec
        self._first_position = b.ints(0)  # one number: positions count up from it
        self._rope: dict[bool, tuple[ir.Value, ir.Value]] = {}  # by is_global
        if spec.has_local:
            with b.scope("local_attention"):
                self._rope[False] = cosines_and_sines(b, "local", attention_mask)
                self._windows = build_windows(b, rows, spec, SIZES, (spec.hidden_size,))
                self._several = b.op("Squeeze", self._windows.several, b.ints(0), name="several")
                blind = self._blind = find_blind(b, self._windows, rows, spec)
                self._any_blind = None if blind is None else any_false(b, blind.sees, "any_blind")
        if spec.has_global:
            with b.scope("global_attention"):
                self._rope[True] = cosines_and_sines(b, "global", attention_mask)
                self._build_conditions(attention_mask)
                self._build_global_bias(rows)
                self._build_mask_channels(attention_mask)

    def _build_conditions(self, attention_mask: ir.Value) -> None:
        """long and padded, bool scalars."""
        b = self._b
        self._length = b.op("Shape", attention_mask, name="length", start=1, end=2)
        long = b.op("Greater", self._length, b.ints(LONGEST_WITH_SCORES), name="longer")
        self._long = b.op("Squeeze", long, b.ints(0), name="long")
        self._padded = any_false(b, attention_mask, "padded")

    def _build_global_bias(self, rows: PaddedRows) -> None:
        """[batch, 1, sequence, sequence] for a short text; for a long one [batch, 1, 1, sequence], not expanded."""
        b = self._b
        keys = rows.global_bias(b)

        def expanded() -> ir.Value:
            shape = b.op("Concat", b.ints(1, 1), self._length, b.ints(1), name="shape", axis=0)
            return b.op("Expand", keys, shape, name="by_query")

        self._bias = b.choose(self._long, lambda: b.op("Identity", keys, name="unused"), expanded, name="bias_rows")

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

    def attention(self, q: ir.Value, k: ir.Value, v: ir.Value, *, is_global: bool) -> ir.Value:
        """See :meth:`mbexport.graph.dialect.Dialect.attention`."""
        b = self._b
        q, k = self._rotate(q, "q", is_global), self._rotate(k, "k", is_global)
        if is_global:
            return b.choose(
                self._long,
                lambda: b.choose(
                    self._padded, lambda: self._padded_flash(q, k, v), lambda: self._flash(q, k, v), name="flash"
                ),
                lambda: self._attend(q, k, v, self._bias),
                name="out",
            )
        blind = self._blind
        if blind is None or self._any_blind is None:
            return self._local(q, k, v)
        return b.choose(
            self._any_blind,
            lambda: blind.fill(b, self._local(q, k, v), v),
            lambda: self._local(q, k, v),
            name="filled_or_not",
        )

    def _local(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        b, windows = self._b, self._windows

        def by_blocks() -> ir.Value:
            blocks = windows.queries(b, q), windows.keys(b, k, "k"), windows.keys(b, v, "v")
            return windows.join(b, self._attend(*blocks, windows.bias))

        return b.choose(self._several, by_blocks, lambda: self._attend(q, k, v, windows.bias), name="out")

    def _rotate(self, x: ir.Value, name: str, is_global: bool) -> ir.Value:
        cos, sin = self._rope[is_global]
        return self._b.op("RotaryEmbedding", x, self._first_position, cos, sin, name=f"{name}_rope", domain=MICROSOFT)

    def _attend(self, q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value) -> ir.Value:
        """q [rows, queries, hidden], k and v [rows, keys, hidden], bias [rows, 1, queries, keys] -> as q."""
        heads = self._spec.num_heads
        return self._b.op(
            "Attention", q, k, v, bias, name="attended",
            q_num_heads=heads, kv_num_heads=heads, scale=self._spec.head_dim**-0.5,
        )  # fmt: skip

    def _padded_flash(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        return self._flash(
            self._append_channel(q, self._query_channel, "q"), self._append_channel(k, self._key_channel, "k"), v
        )

    def _append_channel(self, x: ir.Value, channel: ir.Value, name: str) -> ir.Value:
        """[batch, sequence, hidden] -> [batch, sequence, heads * (head_dim + 1)]."""
        b, heads, size = self._b, self._spec.num_heads, self._spec.head_dim
        by_head = b.op("Reshape", x, b.ints(0, 0, heads, size), name=f"{name}_heads")
        extended = b.op("Concat", by_head, channel, name=f"{name}_extended", axis=-1)
        return b.op("Reshape", extended, b.ints(0, 0, heads * (size + 1)), name=f"{name}_masked")

    def _flash(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        return self._b.op(
            "MultiHeadAttention", q, k, v, name="attended", domain=MICROSOFT,
            num_heads=self._spec.num_heads, scale=self._spec.head_dim**-0.5,
        )  # fmt: skip
