"""What a dialect has to provide: the few blocks that differ between runtimes."""

from __future__ import annotations

from typing import ClassVar, Protocol

import onnx_ir as ir

from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.builder import GraphBuilder
from mbexport.graph.products import Products
from mbexport.graph.rows import Rows


class Dialect(Protocol):
    """Attention, as one runtime computes it best.

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
