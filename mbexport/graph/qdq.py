"""Products that TensorRT computes in INT8 or FP8: QuantizeLinear and DequantizeLinear around them say so."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from mbexport.checkpoint.weights import EMBEDDINGS
from mbexport.graph.builder import typed
from mbexport.graph.layers import EMBEDDING_SCALES, biased, linear, product, scaled
from mbexport.graph.products import Entered, Products
from mbexport.graph.sites import Site

HALF = ir.DataType.FLOAT16
MOST_CODE = {ir.DataType.INT8: 128, ir.DataType.FLOAT8E4M3FN: 448}  # the largest magnitude of a code, by its type
MOST_SUM = 2.0**15  # what a product's sums may reach: half of what FP16 holds


class QdqProducts(Products):
    """Products of codes with codes, where matrices are such; a site has one range for all texts.

    A product's result is FP16, because TensorRT-RTX has no other for Turing, and it is no more than
    the sum of products of codes times one scalar: with scales by channel in the graph's
    DequantizeLinear, TensorRT-RTX writes the bare sums into FP16, where they overflow, and multiplies
    afterwards. So the scalar is a power of two that keeps every possible sum in range
    (:func:`sum_unit`), and what a unit of it counts, by channel, is multiplied in float32: ``MATRIX.scale``.

    ``SITE.step``, float32 scalar, is what an activation's code counts; zero is code 0.
    """

    def enter(self, x: ir.Value, site: Site) -> Entered:
        """See :meth:`Products.enter`."""
        b, entered = self._b, super().enter(x, site)
        codes = b.weight(f"{site.matrices[0]}.weight").dtype
        if codes not in MOST_CODE:
            return entered
        name, zero = site.name.rpartition(".")[-1], b.constant("code_of_zero", np.zeros((), codes.numpy()))
        quantized = b.op("QuantizeLinear", entered.value, b.weight(f"{site.name}.step"), zero, name=f"{name}_codes")
        return Entered(typed(b.op("DequantizeLinear", quantized, self._one(), name=f"{name}_values"), HALF))

    def linear(self, x: Entered, path: str) -> ir.Value:
        """See :meth:`Products.linear`."""
        b, codes = self._b, self._b.weight(f"{path}.weight")
        if codes.dtype not in MOST_CODE or codes.shape is None:
            return super().linear(x, path)
        unit = sum_unit(codes.dtype, codes.shape.numpy()[0])
        scalar = b.constant(f"sum_unit_{unit:g}", np.float16(unit))
        matrix = b.op("DequantizeLinear", codes, scalar, name=f"{path.rpartition('.')[-1]}_values")
        return linear(b, x.value, path, typed(matrix, HALF))

    def embed(self, input_ids: ir.Value) -> ir.Value:
        """See :meth:`Products.embed`; TensorRT takes int8 constants in front of DequantizeLinear only."""
        b, table = self._b, self._b.weight(EMBEDDINGS)
        if table.dtype not in MOST_CODE:
            return super().embed(input_ids)
        rows = b.op("DequantizeLinear", table, b.weight(EMBEDDING_SCALES), name="tok_embeddings_values", axis=0)
        return b.op("Gather", rows, input_ids, name="tok_embeddings")

    def tied(self, rows: ir.Value, last: str) -> ir.Value:
        """See :meth:`Products.tied`; no range is known of what enters, so only the matrix is of codes."""
        b, table = self._b, self._b.weight(EMBEDDINGS)
        if table.dtype not in MOST_CODE:
            return super().tied(rows, last)
        values = typed(b.op("DequantizeLinear", table, self._one(), name="tied_values"), HALF)
        logits = scaled(b, product(b, "Gemm", rows, values, name="tied", transB=1), last)
        return biased(b, logits, last, name="tied")

    def _one(self) -> ir.Value:
        """Makes codes values, each as it is."""
        return self._b.constant("code_itself", np.float16(1))


def sum_unit(codes: ir.DataType, width: int) -> float:
    """The power of two that brings every sum of ``width`` products of codes within MOST_SUM."""
    return 2.0 ** -max(0, math.ceil(math.log2(width * MOST_CODE[codes] ** 2 / MOST_SUM)))
