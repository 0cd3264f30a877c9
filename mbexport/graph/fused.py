"""The ONNX Runtime dialect: the operators that are fastest there, some of them its own.

FP32 products of the layers, and what stands between them, are functions of the domain ``mbexport``, whose bodies are
such operators. Where the library of ``mbexport/native`` is registered, ONNX Runtime computes each call by one kernel of
it; elsewhere it computes the bodies. Both are the same function, and one graph serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from mbexport.checkpoint.spec import ModelSpec
from mbexport.errors import GraphError
from mbexport.graph.builder import MICROSOFT, WIDTH_STEP, GraphBuilder
from mbexport.graph.dialect import PlainBlocks
from mbexport.graph.layers import activation
from mbexport.graph.products import IntegerProducts, Products
from mbexport.graph.rotation import cosines_and_sines
from mbexport.graph.rows import PaddedRows, Rows
from mbexport.graph.windows import (
    BlindQueries,
    BlockSizes,
    Windows,
    any_false,
    build_windows,
    find_blind,
    reads_padding,
)

# What the mask channel of a padded key holds. Every score against it is this times the
# attention scale: far below any real score, and finite.
MASK_CHANNEL = -1e30
LONGEST_WITH_SCORES = 1024  # tokens; global attention beyond holds no [sequence, sequence] tensor
SIZES = BlockSizes(queries=64, most_alone=256)  # measured; benchmarks/NOTES.md has the figures
HEAD_SIZES = (32, 64, 96, 128)  # that the library has kernels for
ADD_NORM, GATED_GELU = "AddNorm", "GatedGelu"

Values = Sequence[ir.Value]


class FusedDialect(PlainBlocks):
    """See :class:`mbexport.graph.dialect.Dialect`.

    In standard operators, local layers, and global ones of texts up to LONGEST_WITH_SCORES, take
    Attention with a bias. Longer texts take MultiHeadAttention, which without a mask operand
    is a flash kernel. Their padding is one more channel of queries (1) and keys (0 or
    MASK_CHANNEL), values unchanged: scores of real keys stay what they were, those of padding
    vanish in the softmax. Without padding there is no such channel.
    """

    opset: ClassVar[int] = 23  # the first with Attention; ONNX Runtime 1.23 reads it
    products: ClassVar[type[Products]] = IntegerProducts

    def __init__(self, b: GraphBuilder, spec: ModelSpec, rows: Rows) -> None:
        super().__init__(b, spec)
        if not isinstance(rows, PaddedRows):
            raise GraphError("packed rows are for GPUs; on a CPU they gain nothing, and this dialect is for those")
        self._mask = rows.mask
        widths = (spec.hidden_size, spec.intermediate_size)
        self._has_kernels = spec.head_dim in HEAD_SIZES and not any(width % WIDTH_STEP for width in widths)
        self._rope: dict[bool, Values] = {}  # cosines and sines, by is_global
        self._plan: dict[bool, Values] = {}  # what the layers of a kind share
        if spec.has_local:
            self._fills = reads_padding(spec)
            with b.scope("local_attention"):
                self._rope[False] = cosines_and_sines(b, "local", rows.mask)
                function = "SightedWindows" if self._fills else "LocalWindows"
                self._plan[False] = self._call(function, rows.mask, body=self._local_plan, name="windows")
        if spec.has_global:
            with b.scope("global_attention"):
                self._rope[True] = cosines_and_sines(b, "global", rows.mask)
                self._plan[True] = self._call("GlobalMask", rows.mask, body=self._global_plan, name="mask")

    def _call(
        self, function: str, *inputs: ir.Value, body: Callable[..., Values], name: str, **attributes: int | float
    ) -> Values:
        """A call of a function; its body in the graph itself, where the library has no kernel for the model's sizes."""
        if self._has_kernels:
            return self._b.call(function, *inputs, body=body, name=name, **attributes)
        with self._b.scope(name):
            return body(*inputs)

    def attention(self, q: ir.Value, k: ir.Value, v: ir.Value, *, is_global: bool) -> ir.Value:
        """See :meth:`mbexport.graph.dialect.Dialect.attention`."""
        inputs = (q, k, v, *self._rope[is_global], self._mask, *self._plan[is_global])
        heads, scale = self._spec.num_heads, self._spec.head_dim**-0.5
        if is_global:
            return self._call(
                "GlobalAttention", *inputs, body=self._attend_globally, name="out", heads=heads, scale=scale
            )[0]
        return self._call(
            "LocalAttention", *inputs, body=self._attend_locally, name="out",
            heads=heads, scale=scale, reach=self._spec.half_window,
        )[0]  # fmt: skip

    def add_and_norm(self, x: ir.Value, update: ir.Value, residual: str, norm: str) -> tuple[ir.Value, ir.Value]:
        """See :meth:`mbexport.graph.dialect.Dialect.add_and_norm`."""
        b, eps = self._b, self._spec.norm_eps
        if not self._has_kernels or b.has_weight(f"{norm}.bias"):
            return super().add_and_norm(x, update, residual, norm)

        def body(x: ir.Value, update: ir.Value, weight: ir.Value) -> Values:
            total = b.op("Add", x, update, name="sum")
            return total, b.op("LayerNormalization", total, weight, name="norm", axis=-1, epsilon=eps)

        with b.at(residual) as name:
            total, normed = b.call(ADD_NORM, x, update, b.weight(f"{norm}.weight"), body=body, name=name, epsilon=eps)
        return total, normed

    def gated(self, value: ir.Value, gate: ir.Value) -> ir.Value:
        """See :meth:`mbexport.graph.dialect.Dialect.gated`."""
        if not self._has_kernels or self._spec.activation != "gelu":
            return super().gated(value, gate)
        b = self._b

        def body(value: ir.Value, gate: ir.Value) -> Values:
            return (b.op("Mul", activation(b, value, "gelu"), gate, name="gated"),)

        return b.call(GATED_GELU, value, gate, body=body, name="gated")[0]

    def _local_plan(self, mask: ir.Value) -> Values:
        """Windows, and where padding is read what :meth:`_attend_locally` fills it by; mask bool [batch, sequence]."""
        b, rows = self._b, PaddedRows(mask)
        windows, seen = build_windows(b, rows, self._spec, SIZES, (self._spec.hidden_size,))
        blind = find_blind(b, seen, rows, self._spec)
        fill = () if blind is None else (any_false(b, blind.sees, "any_blind"), blind.sees)
        return *windows.values(), *fill

    def _attend_locally(
        self, q: ir.Value, k: ir.Value, v: ir.Value, cos: ir.Value, sin: ir.Value, _mask: ir.Value, *plan: ir.Value
    ) -> Values:
        b = self._b
        q, k = self._rotate(q, "q", cos, sin), self._rotate(k, "k", cos, sin)
        if not self._fills:
            return (self._windowed(q, k, v, Windows(*plan)),)
        *shared, any_blind, sees = plan
        windows, blind = Windows(*shared), BlindQueries(sees)
        out = b.choose(
            any_blind,
            lambda: blind.fill(b, self._windowed(q, k, v, windows), v),
            lambda: self._windowed(q, k, v, windows),
            name="filled_or_not",
        )
        return (out,)

    def _windowed(self, q: ir.Value, k: ir.Value, v: ir.Value, windows: Windows) -> ir.Value:
        b = self._b

        def by_blocks() -> ir.Value:
            blocks = windows.queries(b, q), windows.keys(b, k, "k"), windows.keys(b, v, "v")
            return windows.join(b, self._attend(*blocks, windows.bias))

        return b.choose(windows.several, by_blocks, lambda: self._attend(q, k, v, windows.bias), name="blocks")

    def _global_plan(self, mask: ir.Value) -> Values:
        """Whether the text is long, whether there is padding; the bias, and the channels of queries and keys.

        The bias is [batch, 1, sequence, sequence] for a short text, for a long one [batch, 1, 1, sequence], the
        channels [batch, sequence, heads, 1]; mask bool [batch, sequence].
        """
        b = self._b
        length = b.op("Shape", mask, name="length", start=1, end=2)
        longer = b.op("Greater", length, b.ints(LONGEST_WITH_SCORES), name="longer")
        long = b.op("Squeeze", longer, b.ints(0), name="long")
        keys = PaddedRows(mask).global_bias(b)

        def expanded() -> ir.Value:
            shape = b.op("Concat", b.ints(1, 1), length, b.ints(1), name="shape", axis=0)
            return b.op("Expand", keys, shape, name="by_query")

        bias = b.choose(long, lambda: b.op("Identity", keys, name="unused"), expanded, name="bias_rows")
        none, padded = b.constant("no_mask", np.float32(0)), b.constant("mask_channel", np.float32(MASK_CHANNEL))
        channel = b.op("Where", mask, none, padded, name="key_mask")
        column = b.op("Unsqueeze", channel, b.ints(2, 3), name="key_mask_column")
        key_channel = b.op("Expand", column, b.ints(1, 1, self._spec.num_heads, 1), name="key_channel")
        shape = b.op("Shape", key_channel, name="channel_shape")
        query_channel = b.op("Expand", b.constant("one_float", np.float32(1)), shape, name="query_channel")
        return long, any_false(b, mask, "padded"), bias, query_channel, key_channel

    def _attend_globally(
        self,
        q: ir.Value,
        k: ir.Value,
        v: ir.Value,
        cos: ir.Value,
        sin: ir.Value,
        _mask: ir.Value,
        *plan: ir.Value,
    ) -> Values:
        b = self._b
        long, padded, bias, query_channel, key_channel = plan
        q, k = self._rotate(q, "q", cos, sin), self._rotate(k, "k", cos, sin)

        def masked() -> ir.Value:
            return self._flash(self._extended(q, query_channel, "q"), self._extended(k, key_channel, "k"), v)

        def by_flash() -> ir.Value:
            return b.choose(padded, masked, lambda: self._flash(q, k, v), name="flash")

        return (b.choose(long, by_flash, lambda: self._attend(q, k, v, bias), name="by_length"),)

    def _rotate(self, x: ir.Value, name: str, cos: ir.Value, sin: ir.Value) -> ir.Value:
        # The second input is the first position, a number: positions count up from it.
        return self._b.op("RotaryEmbedding", x, self._b.ints(0), cos, sin, name=f"{name}_rope", domain=MICROSOFT)

    def _attend(self, q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value) -> ir.Value:
        """q [rows, queries, hidden], k and v [rows, keys, hidden], bias [rows, 1, queries, keys] -> as q."""
        heads = self._spec.num_heads
        return self._b.op(
            "Attention", q, k, v, bias, name="attended",
            q_num_heads=heads, kv_num_heads=heads, scale=self._spec.head_dim**-0.5,
        )  # fmt: skip

    def _extended(self, x: ir.Value, channel: ir.Value, name: str) -> ir.Value:
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
