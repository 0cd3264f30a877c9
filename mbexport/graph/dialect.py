"""What a dialect has to provide: the few blocks that differ between runtimes."""

from __future__ import annotations

from typing import ClassVar, Protocol

import onnx_ir as ir

from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.builder import GraphBuilder
from mbexport.graph.layers import activation, layer_norm
from mbexport.graph.products import Products
from mbexport.graph.rows import Rows


class Dialect(Protocol):
    """Attention, and what stands between products, as one runtime computes it best.

    One object serves one graph: it is given the batch first and keeps what layers share.
    ``opset`` is the version of the standard operators that it uses, ``products`` its way with
    products of the encoder's layers.
    """

    opset: ClassVar[int]
    products: ClassVar[type[Products]]

    def __init__(self, b: GraphBuilder, spec: ModelSpec, rows: Rows) -> None:
        """Build what all layers share.

        Args:
            b: the graph.
            spec: the model.
            rows: the batch.
        """

    def attention(self, q: ir.Value, k: ir.Value, v: ir.Value, *, is_global: bool) -> ir.Value:
        """Queries, keys and values -> the attended values, each [batch, sequence, hidden]."""

    def add_and_norm(self, x: ir.Value, update: ir.Value, residual: str, norm: str) -> tuple[ir.Value, ir.Value]:
        """The residual stream with an update added, and the norm of that; each [batch, sequence, hidden].

        Args:
            x: the stream.
            update: what a block adds to it.
            residual: the path of the sum, e.g. ``layers.3.attn_residual``.
            norm: the path of the norm, whose weights are read.
        """

    def gated(self, value: ir.Value, gate: ir.Value) -> ir.Value:
        """The model's activation of ``value``, times ``gate``; each [batch, sequence, inner]."""


class PlainBlocks:
    """What stands between products, by standard operators.

    Args:
        b: the graph.
        spec: the model.
    """

    def __init__(self, b: GraphBuilder, spec: ModelSpec) -> None:
        self._b = b
        self._spec = spec

    def add_and_norm(self, x: ir.Value, update: ir.Value, residual: str, norm: str) -> tuple[ir.Value, ir.Value]:
        """See :meth:`Dialect.add_and_norm`."""
        with self._b.at(residual) as name:
            total = self._b.op("Add", x, update, name=name)
        with self._b.at(norm):
            return total, layer_norm(self._b, total, norm, self._spec.norm_eps)

    def gated(self, value: ir.Value, gate: ir.Value) -> ir.Value:
        """See :meth:`Dialect.gated`."""
        return self._b.op("Mul", activation(self._b, value, self._spec.activation), gate, name="gated")
