"""The portable dialect: standard ONNX operators only."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.builder import GraphBuilder
from mbexport.graph.dialect import PlainBlocks
from mbexport.graph.products import Products
from mbexport.graph.rotation import Tables, rotate, tables_in_use
from mbexport.graph.rows import Rows
from mbexport.graph.windows import BlockSizes, build_windows, find_blind

SIZES = BlockSizes(queries=128, most_alone=128)


class PortableDialect(PlainBlocks):
    """See :class:`mbexport.graph.dialect.Dialect`."""

    opset: ClassVar[int] = 20  # the first with Gelu; ONNX Runtime 1.18, OpenVINO 2024 and TensorRT 10 read it
    products: ClassVar[type[Products]] = Products

    def __init__(self, b: GraphBuilder, spec: ModelSpec, rows: Rows) -> None:
        super().__init__(b, spec)
        self._rope: dict[bool, dict[str, Tables]] = {}  # by is_global, then for q and k
        if spec.has_local:
            with b.scope("local_attention"):
                self._rope[False] = self._build_rope("local", rows)
                self._windows, seen = build_windows(b, rows, spec, SIZES, (spec.num_heads, spec.head_dim))
                self._blind = find_blind(b, seen, rows, spec)
        if spec.has_global:
            with b.scope("global_attention"):
                self._rope[True] = self._build_rope("global", rows)
                self._bias = rows.global_bias(b)

    def _build_rope(self, kind: str, rows: Rows) -> dict[str, Tables]:
        """The tables of queries, which hold the attention scale too, and of keys."""
        b = self._b
        cos, sin = tables_in_use(b, kind, rows)
        scale = b.constant("attention_scale", np.float32(self._spec.head_dim**-0.5))
        return {
            "q": (b.op("Mul", cos, scale, name="cos_scaled"), b.op("Mul", sin, scale, name="sin_scaled")),
            "k": (cos, sin),
        }

    def attention(self, q: ir.Value, k: ir.Value, v: ir.Value, *, is_global: bool) -> ir.Value:
        """See :meth:`mbexport.graph.dialect.Dialect.attention`."""
        b, spec = self._b, self._spec
        values, by_head = v, b.ints(0, 0, spec.num_heads, spec.head_dim)
        q, k, v = (b.op("Reshape", x, by_head, name=f"{name}_heads") for name, x in (("q", q), ("k", k), ("v", v)))
        q, k = self._rotate(q, "q", is_global), self._rotate(k, "k", is_global)
        if is_global:
            attended = self._softmax_attention(q, k, v, self._bias)
            return b.op("Reshape", attended, b.ints(0, 0, spec.hidden_size), name="out")
        windows = self._windows
        blocks = windows.queries(b, q), windows.keys(b, k, "k"), windows.keys(b, v, "v")
        attended = windows.join(b, self._softmax_attention(*blocks, windows.bias))
        return attended if self._blind is None else self._blind.fill(b, attended, values)

    def _rotate(self, x: ir.Value, name: str, is_global: bool) -> ir.Value:
        with self._b.scope(f"{name}_rope"):
            return rotate(self._b, x, self._rope[is_global][name])

    def _softmax_attention(self, q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value) -> ir.Value:
        """q [rows, queries, heads, size], scaled; k and v [rows, keys, heads, size] -> as q."""
        b = self._b
        q = b.op("Transpose", q, name="q", perm=[0, 2, 1, 3])
        k = b.op("Transpose", k, name="k", perm=[0, 2, 3, 1])
        v = b.op("Transpose", v, name="v", perm=[0, 2, 1, 3])
        scores = b.op("Add", b.op("MatMul", q, k, name="scores"), bias, name="scores_masked")
        weights = b.op("Softmax", scores, name="weights", axis=-1)
        return b.op("Transpose", b.op("MatMul", weights, v, name="attended"), name="by_token", perm=[0, 2, 1, 3])
