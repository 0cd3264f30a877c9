"""Operators that ONNX Runtime has for 8-bit products on a CPU, each in the whole graph at base size."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from benchmarks.int8.base import base_bundle
from benchmarks.int8.quality import Say
from benchmarks.int8.speed import ANY_ERROR, base_size, measured
from mbexport import manifest as manifests
from mbexport.bench.contenders import Contender
from mbexport.bench.run import Plan
from mbexport.bundle.place import Placed, place
from mbexport.bundle.quantized import written
from mbexport.bundle.stored import StoredWeights
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.builder import MICROSOFT
from mbexport.graph.encoder import DIALECTS, build_graph
from mbexport.graph.products import Entered, IntegerProducts, Products
from mbexport.graph.sites import Site, encoder_sites
from mbexport.manifest import Check, Graph
from mbexport.precision.calibration import Calibration
from mbexport.precision.integer import integer_tensors, steps
from mbexport.quantize.run import CALIBRATION_FILE
from mbexport.runtime.cpu_limit import available_cores
from mbexport.version import __version__

SHAPES, ROUNDS = ("1x128", "1x512"), 15
BLOCK = 128  # inputs that share a scale in MatMulNBits
FILE = "onnx/model_int8.onnx"
Array = npt.NDArray[Any]
Arrays = dict[str, Array | None]  # None: the model's own tensor


@dataclass(frozen=True)
class WithZero(Entered):
    """Codes whose zero point is known when they are made."""

    zero: ir.Value | None = None


class PerCallProducts(IntegerProducts):
    """DynamicQuantizeLinear: one range for all tokens of a call, whatever they are."""

    def enter(self, x: ir.Value, site: Site) -> Entered:
        """See :meth:`Products.enter`."""
        entered = Products.enter(self, x, site)
        name = f"{site.name.rpartition('.')[-1]}_codes"
        codes, step, zero = self._b.multi("DynamicQuantizeLinear", entered.value, outputs=3, name=name)
        return WithZero(codes, step, zero=zero)

    def linear(self, x: Entered, path: str) -> ir.Value:
        """See :meth:`Products.linear`; for models without biases."""
        assert isinstance(x, WithZero)
        b, scale = self._b, self._b.weight(f"{path}.weight_scale")
        given = (x.value, b.weight(f"{path}.weight"), x.step, scale, x.zero)
        return b.op("MatMulIntegerToFloat", *given, name=path.rpartition(".")[-1], domain=MICROSOFT)


class UnsignedProducts(IntegerProducts):
    """uint8 matrices, too, whose zero is 128."""

    def linear(self, x: Entered, path: str) -> ir.Value:
        """See :meth:`Products.linear`; for models without biases."""
        b, scale = self._b, self._b.weight(f"{path}.weight_scale")
        codes = b.weight(f"{path}.weight")
        (outputs,) = shape_of(scale)
        zeros = b.constant(f"zeros_{outputs}", np.full(outputs, 128, np.uint8))
        given = (x.value, codes, x.step, scale, self._zero(), zeros)
        return b.op("MatMulIntegerToFloat", *given, name=path.rpartition(".")[-1], domain=MICROSOFT)


class BlockProducts(IntegerProducts):
    """MatMulNBits of 8 bits, which makes codes of its inputs by itself, a range for each block of a token."""

    def enter(self, x: ir.Value, site: Site) -> Entered:
        """See :meth:`Products.enter`."""
        return Products.enter(self, x, site)

    def linear(self, x: Entered, path: str) -> ir.Value:
        """See :meth:`Products.linear`; for models without biases."""
        b, blocks = self._b, self._b.weight(f"{path}.weight")
        outputs, count, size = shape_of(blocks)
        return b.op(
            "MatMulNBits", x.value, blocks, b.weight(f"{path}.weight_scale"), name=path.rpartition(".")[-1],
            domain=MICROSOFT, K=count * size, N=outputs, bits=8, block_size=size, accuracy_level=4,
        )  # fmt: skip


def shape_of(weight: ir.Value) -> tuple[int, ...]:
    """Of a tensor that is stored."""
    assert weight.const_value is not None
    return tuple(int(length) for length in weight.const_value.shape.numpy())


def unsigned(codes: Array, scale: Array) -> tuple[Array, Array]:
    """int8 codes [in, out] as uint8."""
    return (codes.astype(np.int16) + 128).astype(np.uint8), scale


def blocks(codes: Array, scale: Array) -> tuple[Array, Array]:
    """int8 codes [in, out] as MatMulNBits reads them: [out, blocks, BLOCK], and a scale for each block."""
    made, scale = unsigned(codes.T, scale)
    return made.reshape(len(made), -1, BLOCK), np.repeat(scale, made.shape[1] // BLOCK)


@dataclass(frozen=True)
class Variant:
    """A way to compute the products.

    Attributes:
        products: records them.
        change: codes [in, out] and scales [out] of a matrix to what they read.
        static: sites that have one range for all texts: ``all``, ``none``, or those that mbexport chose.
    """

    products: type[IntegerProducts] = IntegerProducts
    change: Callable[[Array, Array], tuple[Array, Array]] = lambda codes, scale: (codes, scale)
    static: str = "chosen"


VARIANTS = {
    "mbexport: U8S8, one range, or by token where that is worth it": Variant(),
    "U8S8, one range": Variant(static="all"),
    "U8S8, a range for each token": Variant(static="none"),
    "U8S8, DynamicQuantizeLinear": Variant(PerCallProducts, static="none"),
    "U8U8, one range": Variant(UnsignedProducts, unsigned, "all"),
    f"MatMulNBits, 8 bits, blocks of {BLOCK}": Variant(BlockProducts, blocks, "none"),
}


def operators(work: Path, say: Say) -> dict[str, Any]:
    """Seconds of whole graphs, as ``mbexport bench`` reports them, by plain values.

    Args:
        work: a folder for what is made; the base bundle in it is kept.
        say: told what is done.
    """
    bundle = base_bundle(work, say)
    threads = available_cores()
    contenders = [Contender("FP32", "mbexport", str(bundle), threads)]
    for number, (name, variant) in enumerate(VARIANTS.items()):
        folder = work / f"operators-{number}"
        say(f"  {name}")
        write(bundle, folder, variant)
        contenders.append(Contender(name, "mbexport-int8", str(folder), threads, ANY_ERROR))
    size, maker = base_size(bundle)
    plan = Plan(
        model="base", size=size, contenders=tuple(contenders), workloads=tuple(map(maker.shape, SHAPES)),
        tokenizer=bundle / "tokenizer.json", memory=(), rounds=ROUNDS,
    )  # fmt: skip
    figures = measured(plan, say)
    for number in range(len(VARIANTS)):
        shutil.rmtree(work / f"operators-{number}")
    return figures


def write(bundle: Path, folder: Path, variant: Variant) -> None:
    """A bundle of nothing but a variant's INT8 graph, made of the weights and ranges of another bundle."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "onnx").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundle / name, folder)
    manifest = manifests.read(bundle)
    manifests.write(dataclasses.replace(manifest, graphs=(), weights=(), checks=()), folder)
    spec, stored = read_bundle_spec(bundle, manifest), StoredWeights(bundle, manifest)
    calibration = Calibration.load(bundle / CALIBRATION_FILE)
    made = tensors_of(spec, stored, calibration, variant)
    named = {name: stored[name] if array is None else array for name, array in made.items()}
    with written(folder, f"{FILE}_data", [named]) as weights:
        own = weights.tensors(0, folder / f"{FILE}_data")
        model = build_graph(spec, own, "onnxruntime", __version__, products=variant.products)
        entry = Graph(FILE, "int8", "onnxruntime", DIALECTS["onnxruntime"].opset, "", activation_bits=8)
        place(folder, weights, [Placed(entry, model, Check(f"quality of {FILE}", "none", {}, passed=True))])


def tensors_of(spec: ModelSpec, stored: StoredWeights, calibration: Calibration, variant: Variant) -> Arrays:
    """All tensors of a variant's graph."""
    made: Arrays = dict(integer_tensors(spec, stored, calibration))
    for site in encoder_sites(spec):
        for matrix in site.matrices:
            name = f"{matrix}.weight"
            codes, scale = made[name], made[f"{name}_scale"]
            assert codes is not None
            assert scale is not None
            made[name], made[f"{name}_scale"] = variant.change(codes, scale)
    if variant.static == "none":
        return made
    return made | steps(spec, calibration, (), by_row=variant.static == "chosen")
