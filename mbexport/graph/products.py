"""Products of the encoder's values with its matrices, in floating point or in 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mbexport.checkpoint.weights import EMBEDDINGS
from mbexport.graph.builder import MICROSOFT, WIDTH_STEP, GraphBuilder, element_type
from mbexport.graph.layers import EMBEDDING_SCALES, biased, embed, linear, product, scaled
from mbexport.graph.sites import Site

CODES_OF_ROWS, PRODUCT = "CodesOfRows", "Product"
SMALLEST = np.float32(1e-30)  # largest magnitude of a row that is all zeros: what it is divided by


@dataclass(frozen=True)
class Entered:
    """What the products of a site read: the value itself, or its codes and what they stand for.

    Attributes:
        value: float32, or uint8 codes; [batch, sequence, in].
        step: float32 scalar, what a code counts; None where ``value`` is no codes.
        rows: float32 [batch, sequence, 1], a further factor for each token; None for none.
    """

    value: ir.Value
    step: ir.Value | None = None
    rows: ir.Value | None = None


class Products:
    """Products in the element types of the matrices: float32, float16 or bfloat16."""

    def __init__(self, b: GraphBuilder) -> None:
        self._b = b

    def enter(self, x: ir.Value, site: Site) -> Entered:
        """What all products of a site read; x float32 [batch, sequence, in]."""
        return Entered(scaled(self._b, x, site.name))

    def linear(self, x: Entered, path: str) -> ir.Value:
        """``x @ weight (+ bias)``, float32 [batch, sequence, out]; ``path`` is one of the site's matrices."""
        return linear(self._b, x.value, path)

    def embed(self, input_ids: ir.Value) -> ir.Value:
        """Rows of the embedding matrix, float32 [batch, sequence, hidden]."""
        return embed(self._b, input_ids)

    def tied(self, rows: ir.Value, last: str) -> ir.Value:
        """``rows @ embeddings^T (+ bias)``, float32 [n, hidden] -> [n, vocabulary].

        The embedding matrix is read as it is stored, [vocabulary, hidden]; ``last`` is the module.
        """
        b, table = self._b, self._b.weight(EMBEDDINGS)
        bias = [b.weight(f"{last}.bias")] if b.has_weight(f"{last}.bias") else []
        if element_type(table) == ir.DataType.FLOAT:
            return b.op("Gemm", rows, table, *bias, name="tied", transB=1)
        logits = product(b, "Gemm", rows, table, name="tied", transB=1)
        if b.has_weight(EMBEDDING_SCALES):
            logits = b.op("Mul", logits, b.weight(EMBEDDING_SCALES), name="tied_scaled")
        return biased(b, scaled(b, logits, last), last, name="tied")


class IntegerProducts(Products):
    """ONNX Runtime's products of uint8 activations with int8 matrices, where those were prepared; else calls.

    A site has one range for all tokens where a tensor ``SITE.step`` says what a code counts; elsewhere
    each token has its own, its largest magnitude. Neither depends on the other texts of a batch, as ONNX
    Runtime's own dynamic quantization does. The zero point stands in the middle of the codes.

    Args:
        b: the graph.
        activation_bits: 8; or 7 for CPUs that add pairs of uint8 x int8 products in 16 bits, which
            saturate beyond 2 * 127 * 127. With 7, every site has ranges for each token: a range for all
            would let values beyond it have codes of 8 bits.
    """

    def __init__(self, b: GraphBuilder, activation_bits: int = 8) -> None:
        super().__init__(b)
        self._levels = most_code(activation_bits)

    def enter(self, x: ir.Value, site: Site) -> Entered:
        """See :meth:`Products.enter`."""
        b = self._b
        entered = super().enter(x, site)
        if not b.has_weight(f"{site.matrices[0]}.weight_scale"):
            return entered
        name = site.name.rpartition(".")[-1]
        if not b.has_weight(f"{site.name}.step"):
            return self._by_row(entered.value, _sizes(b.weight(f"{site.matrices[0]}.weight"))[0], name)
        step = b.weight(f"{site.name}.step")
        return Entered(self._codes(entered.value, step, name), step)

    def _by_row(self, x: ir.Value, width: int, name: str) -> Entered:
        """Each token's numbers by its largest magnitude; x [..., width]."""
        b = self._b

        def body(x: ir.Value) -> tuple[ir.Value, ir.Value]:
            sizes = b.op("Abs", x, name=f"{name}_sizes")
            largest = b.op("ReduceMax", sizes, b.ints(-1), name=f"{name}_largest", keepdims=1)
            largest = b.op("Max", largest, b.constant("smallest_row", SMALLEST), name=f"{name}_rows")
            within = b.op("Div", x, largest, name=f"{name}_within")  # [-1, 1]
            return self._codes(within, self._step(), name), largest

        if width % WIDTH_STEP:
            codes, largest = body(x)
        else:
            codes, largest = b.call(CODES_OF_ROWS, x, body=body, name=f"{name}_of_rows", levels=float(self._levels))
        return Entered(codes, self._step(), largest)

    def _step(self) -> ir.Value:
        """What a code counts of a row's largest magnitude, float32 scalar."""
        return self._b.constant("step_of_rows", np.float32(1 / self._levels))

    def _codes(self, x: ir.Value, step: ir.Value, name: str) -> ir.Value:
        """uint8, as x; of ONNX Runtime's own domain: 1.23, the last for Python 3.10, lacks that of opset 23."""
        return self._b.op("QuantizeLinear", x, step, self._zero(), name=f"{name}_codes", domain=MICROSOFT)

    def _zero(self) -> ir.Value:
        """The code of zero, uint8 scalar."""
        return self._b.constant("code_of_zero", np.uint8(self._levels + 1))

    def linear(self, x: Entered, path: str) -> ir.Value:
        """See :meth:`Products.linear`."""
        b, name = self._b, path.rpartition(".")[-1]
        if x.step is None:
            return self._unquantized(x.value, path, name)
        codes, scale = b.weight(f"{path}.weight"), b.weight(f"{path}.weight_scale")
        y = b.op("MatMulIntegerToFloat", x.value, codes, x.step, scale, self._zero(), name=name, domain=MICROSOFT)
        if x.rows is not None:
            y = b.op("Mul", y, x.rows, name=f"{name}_by_row")
        return biased(b, y, path, name=name)

    def _unquantized(self, x: ir.Value, path: str, name: str) -> ir.Value:
        """A call, where mbexport's library has a kernel for the sizes."""
        b, weight = self._b, self._b.weight(f"{path}.weight")
        if element_type(weight) != ir.DataType.FLOAT or any(size % WIDTH_STEP for size in _sizes(weight)):
            return super().linear(Entered(x), path)

        def body(x: ir.Value, weight: ir.Value) -> tuple[ir.Value]:
            return (b.op("MatMul", x, weight, name="product"),)

        y = b.call(PRODUCT, x, weight, body=body, name=name)[0]
        return biased(b, scaled(b, y, path), path, name=name)

    def tied(self, rows: ir.Value, last: str) -> ir.Value:
        """See :meth:`Products.tied`."""
        b, table = self._b, self._b.weight(EMBEDDINGS)
        if element_type(table) != ir.DataType.INT8:
            return super().tied(rows, last)
        vocabulary, width = _sizes(table)
        x, scales = self._by_row(rows, width, "tied"), b.weight(EMBEDDING_SCALES)
        zeros = b.constant("tied_zeros", np.zeros(vocabulary, np.int8))
        y = b.op("QGemm", x.value, x.step, self._zero(), table, scales, zeros, name="tied", domain=MICROSOFT, transB=1)
        return biased(b, b.op("Mul", y, x.rows, name="tied_by_row"), last, name="tied")


def _sizes(weight: ir.Value) -> tuple[int, ...]:
    assert weight.shape is not None
    return weight.shape.numpy()


def most_code(activation_bits: int) -> int:
    """The code that the largest magnitude gets, counted from that of zero: 127 of 8 bits, 63 of 7."""
    return int(2 ** (activation_bits - 1) - 1)


ProductsOf = Callable[[GraphBuilder], Products]


class ObservedProducts(Products):
    """As they are, with an output of the graph for what enters each site, named as the site is."""

    def enter(self, x: ir.Value, site: Site) -> Entered:
        """See :meth:`Products.enter`."""
        entered = super().enter(x, site)
        b = self._b
        seen = b.op("Identity", entered.value, name=f"{site.name.rpartition('.')[-1]}_seen")
        b.output(seen, site.name, ir.DataType.FLOAT, ["batch", "sequence", "width"])
        return entered
