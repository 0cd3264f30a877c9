"""The INT8 graphs that a bundle gets: what each is made of, and how it is tried before it is written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from mbexport.bundle.stored import StoredWeights
from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.encoder import build_graph
from mbexport.graph.products import IntegerProducts
from mbexport.graph.rope import split_tables
from mbexport.precision.calibration import Calibration
from mbexport.precision.integer import integer_tensors, quantized_sites, smoothed, steps
from mbexport.precision.quantized import QuantizedWeights
from mbexport.version import __version__

ENGINE_FILES = {"int8": "onnx/model_int8_trt.onnx", "fp8": "onnx/model_fp8.onnx"}
Arrays = dict[str, npt.NDArray[Any] | None]  # None: the model's own tensor, unchanged
Unheld = tuple[str, ...]  # layers whose attention scores a graph does not surely hold, as the manifest names them


@dataclass(frozen=True)
class Source:
    """What quantized graphs are made of."""

    folder: Path  # that the stored weights lie in
    spec: ModelSpec
    stored: StoredWeights
    calibration: Calibration


@dataclass(frozen=True)
class Target:
    """One graph to be.

    Attributes:
        file: in the bundle.
        precision: ``int8`` or ``fp8``.
        dialect: a key of ``mbexport.graph.encoder.DIALECTS``.
        activation_bits: of ONNX Runtime's products; None for other dialects.
        make: from a source and the parts that are kept to all tensors, by name, and the layers that are unheld.
        build: from those, as tensors of a graph, to the graph; ``selects_tokens`` as ``build_graph`` takes it.
        selecting_file: of the same graph with outputs of chosen tokens, for fill-mask; None without one.
    """

    file: str
    precision: str
    dialect: str
    activation_bits: int | None
    make: Callable[[Source, Collection[str]], tuple[Arrays, Unheld]]
    build: Callable[..., ir.Model]
    selecting_file: str | None = None

    def trial(self, source: Source, keep: Collection[str]) -> ir.Model:
        """The graph with all that is its own in memory; the rest stays where it lies."""
        arrays, _ = self.make(source, keep)
        tensors: dict[str, ir.TensorProtocol] = {
            name: source.stored.tensors[name] if array is None else ir.tensor(array, name=name)
            for name, array in arrays.items()
        }
        return self.build(source.spec, tensors)


def integer_target(bits: int, *, by_row: bool = True) -> Target:
    """The graph for ONNX Runtime.

    Args:
        bits: of activations, 8 or 7.
        by_row: whether each token has its own range at the sites where that is worth it.
    """
    name = "onnx/model_int8" if bits == 8 else "onnx/model_int8_reduced"

    def make(source: Source, keep: Collection[str]) -> tuple[Arrays, Unheld]:
        named: Arrays = dict(integer_tensors(source.spec, source.stored, source.calibration, keep))
        return named | (steps(source.spec, source.calibration, keep, by_row=by_row) if bits == 8 else {}), ()

    def build(spec: ModelSpec, weights: Mapping[str, ir.TensorProtocol], *, selects_tokens: bool = False) -> ir.Model:
        products = partial(IntegerProducts, activation_bits=bits)
        return build_graph(spec, weights, "onnxruntime", __version__, selects_tokens=selects_tokens, products=products)

    return Target(f"{name}.onnx", "int8", "onnxruntime", bits, make, build, f"{name}_selected.onnx")


def engine_target(precision: str) -> Target:
    """The graph that TensorRT engines are built from; every site has one range for all texts.

    Args:
        precision: ``int8`` or ``fp8``.
    """

    def make(source: Source, keep: Collection[str]) -> tuple[Arrays, Unheld]:
        spec, sites = source.spec, source.calibration.sites
        ranges = {site.name: sites[site.name].range for site in quantized_sites(spec, keep)}
        made: dict[str, npt.NDArray[Any]] = {}
        smooth = smoothed(spec, source.stored, source.calibration, keep)
        weights = QuantizedWeights(made.__setitem__, spec, smooth, ranges, precision, keep)
        weights.make()
        for kind in [kind for kind in ("global", "local") if f"rope.{kind}.cos" in made]:
            parts = split_tables(made.pop(f"rope.{kind}.cos"), made.pop(f"rope.{kind}.sin"))
            made |= {f"rope.{kind}.{name}": part for name, part in parts.items()}
        return dict(made), weights.unheld

    def build(spec: ModelSpec, weights: Mapping[str, ir.TensorProtocol]) -> ir.Model:
        return build_graph(spec, weights, "tensorrt", __version__)

    return Target(ENGINE_FILES[precision], precision, "tensorrt", None, make, build)
