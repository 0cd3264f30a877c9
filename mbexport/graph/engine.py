"""The TensorRT dialect: standard operators of opset 23, attention as one of them."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.builder import GraphBuilder, typed
from mbexport.graph.dialect import PlainBlocks
from mbexport.graph.products import Products
from mbexport.graph.qdq import QdqProducts
from mbexport.graph.rotation import Tables, rotate, tables_in_use
from mbexport.graph.rows import PackedRows, Rows
from mbexport.graph.windows import build_fixed_windows

BLOCK = 128  # queries of a block of local attention, whatever the length: TensorRT's kernels like sizes they know


class EngineDialect(PlainBlocks):
    """See :class:`mbexport.graph.dialect.Dialect`.

    One Attention node a layer, for which TensorRT has one kernel; no branches. What enters it is
    in half precision in a half-precision graph, rotary positions are float32.

    Padded queries that see no key attend to something, not to the mean of all values: what
    becomes of them reaches an output only of a classifier that pools the first position, with
    more padding on the left than a window is wide. PyTorch's own attention kernels differ there.
    """

    opset: ClassVar[int] = 23  # the first with Attention
    products: ClassVar[type[Products]] = QdqProducts

    def __init__(self, b: GraphBuilder, spec: ModelSpec, rows: Rows) -> None:
        super().__init__(b, spec)
        self._type = b.product_type
        self._rope: dict[bool, Tables] = {}  # by is_global
        if spec.has_local:
            with b.scope("local_attention"):
                self._rope[False] = tables_in_use(b, "local", rows)
                self._windows = build_fixed_windows(b, rows, spec, BLOCK, self._type)
        if spec.has_global:
            with b.scope("global_attention"):
                self._rope[True] = tables_in_use(b, "global", rows)
                self._bias = self._build_global_bias(rows)

    def _build_global_bias(self, rows: Rows) -> ir.Value:
        """[batch, 1, sequence, sequence]; of padded rows by one Expand, as ONNX Runtime takes no fewer queries.

        TensorRT does, and gets the bias as it was before (``mbexport.engines``).
        """
        b = self._b
        bias = rows.global_bias(b, self._type)
        if isinstance(rows, PackedRows):
            return bias
        length = b.op("Shape", rows.mask, name="length", start=1, end=2)
        shape = b.op("Concat", b.ints(1, 1), length, b.ints(1), name="bias_shape", axis=0)
        return b.op("Expand", bias, shape, name="bias_rows")

    def attention(self, q: ir.Value, k: ir.Value, v: ir.Value, *, is_global: bool) -> ir.Value:
        """See :meth:`mbexport.graph.dialect.Dialect.attention`."""
        b = self._b
        q, k = self._rotate(q, "q", is_global), self._rotate(k, "k", is_global)
        q, k, v = (b.cast(x, self._type) for x in (q, k, v))
        if is_global:
            return b.widen(self._attend(q, k, v, self._bias))
        windows = self._windows
        blocks = windows.queries(b, q), windows.keys(b, k, "k"), windows.keys(b, v, "v")
        joined = windows.join(b, self._attend(*blocks, windows.bias))
        return b.widen(typed(joined, self._type))

    def _rotate(self, x: ir.Value, name: str, is_global: bool) -> ir.Value:
        """Rotary positions; [batch, sequence, hidden], float32."""
        b, spec = self._b, self._spec
        with b.scope(f"{name}_rope"):
            heads = b.op("Reshape", x, b.ints(0, 0, spec.num_heads, spec.head_dim), name="heads")
            rotated = rotate(b, heads, self._rope[is_global])
            return b.op("Reshape", rotated, b.ints(0, 0, spec.hidden_size), name=f"{name}_joined")

    def _attend(self, q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value) -> ir.Value:
        """q [rows, queries, hidden], k and v [rows, keys, hidden] -> as q.

        No softmax_precision: TensorRT refuses the attribute; its fused kernels add and normalize in float32.
        """
        heads = self._spec.num_heads
        attended = self._b.op(
            "Attention", q, k, v, bias, name="attended", q_num_heads=heads, kv_num_heads=heads,
            scale=self._spec.head_dim**-0.5,
        )  # fmt: skip
        return typed(attended, self._type)
