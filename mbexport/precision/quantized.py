"""Smoothed FP32 weights to those of TensorRT's INT8 or FP8 graph: codes where a site has a range, else FP16.

What a code counts is a float32 factor behind each product, so no range of FP16's is at stake there. What is
left to hold is what attention itself reads, FP16 as ever, and the sites that stay FP16 altogether.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mbexport.checkpoint.spec import ModelSpec
from mbexport.checkpoint.weights import EMBEDDINGS
from mbexport.graph.layers import EMBEDDING_SCALES
from mbexport.graph.qdq import sum_unit
from mbexport.graph.sites import encoder_sites, within
from mbexport.precision import bounds, half
from mbexport.precision.codes import MOST, MOST_FP8, to_codes, to_fp8
from mbexport.precision.half import NONE, FloatArray, HalfWeights, IntArray, Put, Tensors


@dataclass(frozen=True)
class _Codes:
    """A kind of codes: the one that a range's end gets, and how far a value lies from its code's.

    ``relative`` is a share of the value itself, ``absolute`` of what a code counts; the larger one
    of the two holds, or the value is beyond the range and its code smaller.
    """

    most: int
    relative: float
    absolute: float


_TINY = np.finfo(np.float32).tiny
_KINDS = {"int8": _Codes(MOST, 0.0, 0.5), "fp8": _Codes(MOST_FP8, 2.0**-4, 2.0**-10)}


class QuantizedWeights(HalfWeights):
    """The tensors of TensorRT's graph in INT8 or FP8, for :class:`mbexport.graph.qdq.QdqProducts`.

    Beside what :class:`HalfWeights` makes, scalars among them: ``SITE.step``, and for each of the
    site's matrices ``MATRIX.weight``, the very codes of :func:`to_codes` or :func:`to_fp8`, and
    ``MATRIX.scale``, float32 [out]. The embeddings are int8 with a scale for each row.

    Args:
        put: called with name and array of each as it is made.
        spec: the model.
        tensors: its FP32 tensors by name, smoothed; ``layers.0.attn.in.scale`` where there is no
            normalization for these factors to go into.
        ranges: by site, the magnitude that the largest code stands for; a site without stays float16.
        precision: ``int8`` or ``fp8``.
        keep: parts that stay float16 in spite of their ranges: ``embeddings``, sites, or ``layers.N``,
            ``layers.N.attn``, ``layers.N.mlp``.

    Attributes:
        sites: what was found of each value that is float16, complete once all tensors were made.
    """

    def __init__(
        self, put: Put, spec: ModelSpec, tensors: Tensors, ranges: Mapping[str, float], precision: str,
        keep: Collection[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(put, spec, _with_first_norm(tensors), "fp16")
        self._kind, self._to_codes = _KINDS[precision], to_codes if precision == "int8" else to_fp8
        self._type = ir.DataType.INT8 if precision == "int8" else ir.DataType.FLOAT8E4M3FN
        self._kept = tuple(keep)
        self._codes: dict[str, tuple[npt.NDArray[Any], FloatArray]] = {}
        self._site_of: dict[str, str] = {}  # of each matrix that becomes codes
        self._step: dict[str, np.float32] = {}  # of each of their sites
        for site in encoder_sites(spec):
            if site.name in ranges and not self._keeps(site.name):
                self._step[site.name] = np.float32(ranges[site.name] / self._kind.most)
                self._site_of |= dict.fromkeys(site.matrices, site.name)

    def _keeps(self, path: str) -> bool:
        return any(within(path, part) for part in self._kept)

    def _embeddings(self) -> None:
        if self._keeps("embeddings"):
            super()._embeddings()
            return
        codes, scale = to_codes(self._tensors[EMBEDDINGS].T)
        self._put(EMBEDDINGS, np.ascontiguousarray(codes.T))
        self._put(EMBEDDING_SCALES, scale)
        head = self._spec.head
        if head is not None and head.tied:  # sums of codes, times what enters
            bound = bounds.normed_product(codes.astype(np.float32), *self._norm_of("head.norm"), None).max(
                keepdims=True
            )
            shift = self._noted(f"{head.last_layer}.in", bound, np.ceil(np.log2(np.maximum(bound, _TINY) / half.LIMIT)))
            self._factors(f"{head.last_layer}.in", -shift)
            self._put(f"{head.last_layer}.scale", np.ldexp(scale, shift))
        self._norm("embeddings.norm")

    def _attention_norm(self, layer: int) -> str:
        return f"layers.{layer}.attn_norm"  # the first layer's is _with_first_norm's

    def _enter(self, site: str, bound: FloatArray) -> IntArray:
        if site not in self._step:
            return super()._enter(site, bound)
        nothing = np.zeros(len(bound), np.int32)
        self._factors(site, nothing)
        self._put(f"{site}.step", np.asarray(self._step[site]))
        return nothing

    def _factors(self, site: str, shift: IntArray) -> None:
        smoothing = self._tensors.get(f"{site}.scale")
        if smoothing is None:
            super()._factors(site, shift)
        else:
            self._put(f"{site}.scale", np.ldexp(smoothing, shift))

    def _product(self, path: str, bound: FloatArray, enter: IntArray, further: IntArray = NONE) -> None:
        if path not in self._site_of:
            super()._product(path, bound, enter, further)
            return
        site = self._site_of[path]
        if path.endswith(".Wo"):  # what is taken out of its inputs, all of them alike, is in what their codes count
            self._put(f"{site}.step", np.ldexp(self._step[site], -int(enter.max())))
        codes, scale = self._codes_of(path)
        del self._codes[path]
        self._put(f"{path}.weight", codes)
        counts = scale * self._step[site] / np.float32(sum_unit(self._type, len(codes)))
        self._put(f"{path}.scale", np.ldexp(counts, -further))
        self._bias(path, further)

    def _lasting(self, path: str, enter: IntArray, shift: IntArray) -> None:
        if path in self._site_of:
            self._product(path, NONE.astype(np.float32), enter, further=shift)
        else:
            super()._lasting(path, enter, shift)

    def _values(self, site: str, bound: FloatArray) -> IntArray:
        """One power of two for all channels where they meet as codes: smoothing made them alike."""
        if f"{site.removesuffix('.v')}.out" not in self._step:
            return super()._values(site, bound)
        largest = float(np.log2(max(bound.max(), _TINY)))
        shift = max(0.0, np.ceil(largest - np.log2(half.LIMIT)))
        if bound.any() and largest < np.log2(half.LEAST_BOUND):
            shift = np.round(largest - np.log2(half.LIFTED))
        return self._noted(site, bound, np.full_like(bound, shift))

    def _gated(self, site: str, bound: FloatArray, gate: IntArray) -> IntArray:
        """Nothing in all where they become codes: smoothing made the channels alike."""
        return -gate if site in self._step else super()._gated(site, bound, gate)

    def _shifts(self, site: str, bound: FloatArray, size: FloatArray) -> IntArray:
        if (
            site.endswith(".gate") and site.removesuffix("gate") + "in" in self._step
        ):  # its codes are counted in float32
            return np.zeros(len(bound), np.int32)
        return super()._shifts(site, bound, size)

    def _normed_product(self, path: str, norm: str) -> FloatArray:
        """Of codes: rounding may add to what the product could be, but no code is beyond the range."""
        if path not in self._site_of:
            return super()._normed_product(path, norm)
        matrix, bias = self._decoded(path), self._tensors.get(f"{path}.bias")
        exact = bounds.normed_product(matrix, *self._norm_of(norm), None)
        reach = np.abs(matrix).sum(axis=0) * self._step[self._site_of[path]]
        rounded = exact * (1 + self._kind.relative) + reach * self._kind.absolute
        bound: FloatArray = np.minimum(rounded, reach * (self._kind.most + 1))
        return bound if bias is None else bound + np.abs(bias)

    def _head_norms(self, path: str, norm: str) -> FloatArray:
        """Of codes: what rounding may add is a vector of its own for each head."""
        if path not in self._site_of:
            return super()._head_norms(path, norm)
        matrix, heads = self._decoded(path), self._spec.num_heads
        exact = bounds.head_norms(matrix, *self._norm_of(norm), self._tensors.get(f"{path}.bias"), heads)
        step = self._step[self._site_of[path]] * self._kind.absolute
        added = np.linalg.norm((np.abs(matrix).sum(axis=0) * step).reshape(heads, -1), axis=1)
        norms: FloatArray = exact * (1 + self._kind.relative) + added
        return norms

    def _codes_of(self, path: str) -> tuple[npt.NDArray[Any], FloatArray]:
        """A matrix's codes and scales, kept until they are put."""
        if path not in self._codes:
            self._codes[path] = self._to_codes(self._tensors[f"{path}.weight"])
        return self._codes[path]

    def _decoded(self, path: str) -> FloatArray:
        codes, scale = self._codes_of(path)
        return codes.astype(np.float32) * scale


def _with_first_norm(tensors: Tensors) -> Tensors:
    """The normalization that the first attention reads is the embeddings', times the factors of smoothing."""
    factors = tensors.get("layers.0.attn.in.scale", np.float32(1))
    parts = {kind: tensors.get(f"embeddings.norm.{kind}") for kind in ("weight", "bias")}
    first = {f"layers.0.attn_norm.{kind}": part * factors for kind, part in parts.items() if part is not None}
    return ChainMap(first, cast("dict[str, FloatArray]", tensors))  # which is only read
