"""FP32 weights to those of a half-precision graph, with exact factors where a value could leave the range.

A matrix product in FP16 takes and gives values up to 65,504, and rounds those below 6e-5
coarsely. Where the bounds say that a value could pass LIMIT, where values or weights of a
channel are that small, or where a product's inputs differ widely, a power of two is taken out of
the channel and put back where the value is float32 again, or into the next matrix. The function
stays what it was, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mbexport.checkpoint.sentence_config import SENTENCE, DenseSpec
from mbexport.checkpoint.spec import ModelSpec
from mbexport.checkpoint.weights import EMBEDDINGS
from mbexport.errors import InputError, PrecisionError
from mbexport.graph.heads import is_exact
from mbexport.graph.rope import rope_tables
from mbexport.graph.rows import MOST_SCORE
from mbexport.graph.sites import within
from mbexport.precision import bounds

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]
Tensors = Mapping[str, FloatArray]
Put = Callable[[str, npt.NDArray[np.generic]], None]

DTYPES: dict[str, npt.DTypeLike] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
LIMIT = 2.0**15  # what a bound may reach: half of what FP16 holds
LEAST_WEIGHT, MOST_WEIGHT = 2.0**-8, 2.0**10  # a channel's largest: FP16 rounds it, and what counts beside it, well
LEAST_BOUND, LIFTED = 2.0**-2, 2.0**6  # typical values lie far below a bound: below the first they go to the second
MOST_LIFT = 60.0  # powers of two that what is tiny is multiplied by: more of it adds nothing to a sum with the rest
MOST_FACTOR = 126  # powers of two, that float32 holds with their reciprocals
MOST_SPREAD = 4.0  # powers of two by which a product's inputs may differ: as much as the weights of one output do
NONE: IntArray = np.zeros(1, np.int32)


@dataclass(frozen=True)
class Site:
    """A value that half precision holds.

    ``bound``: how large it could become, over all channels; ``shift``: the largest power of two
    that was taken out of a channel, 0 for none; ``held``: whether FP16 surely holds it. Attention
    scores have no factor to take out: TensorRT's fused kernels keep them in float32, but padding
    is told from text by MASKED_AS only while they are within MOST_SCORE.
    """

    name: str
    bound: float
    shift: int
    held: bool = True


class HalfWeights:
    """The tensors of a half-precision graph.

    Args:
        put: called with name and array of each as it is made.
        spec: the model.
        tensors: its FP32 tensors by name, as the bundle's weights file holds them ([in, out]).
        precision: ``fp16`` or ``bf16``; the range of BF16 is float32's, so nothing is shifted.
        keep_fp32: parts whose matrix products stay float32: ``embeddings``, ``head`` (all that stands
            on the encoder), ``layers.N``, ``layers.N.attn`` (its projections: what enters attention
            itself stays in half precision), ``layers.N.mlp``.

    Attributes:
        sites: what was found of each value, complete once all tensors were made.

    Raises:
        InputError: a name in ``keep_fp32`` is no part.
    """

    def __init__(
        self, put: Put, spec: ModelSpec, tensors: Tensors, precision: str, keep_fp32: Collection[str] = ()
    ) -> None:
        self._put = put
        self._spec = spec
        self._tensors = tensors
        self._dtype = DTYPES[precision]
        self._limited = precision == "fp16"
        self._keep = _checked(keep_fp32, spec)
        self.sites: list[Site] = []

    def make(self) -> None:
        """Make all tensors.

        Raises:
            PrecisionError: FP16 cannot hold the queries and keys of a head.
        """
        spec = self._spec
        self._embeddings()
        for layer in range(spec.num_layers):
            self._attention(layer)
            self._mlp(layer)
        self._norm("final_norm")
        hidden = bounds.after_norm(*self._norm_of("final_norm"))
        if spec.head is not None:
            self._head(hidden)
        if spec.sentence is not None:
            self._sentence(hidden)
        for kind, used in (("global", spec.has_global), ("local", spec.has_local)):
            for table in ("cos", "sin") if used else ():
                self._put(f"rope.{kind}.{table}", self._tensors[f"rope.{kind}.{table}"])

    @property
    def unheld(self) -> tuple[str, ...]:
        """Layers whose attention scores FP16 does not surely hold, once all tensors were made."""
        return tuple(site.name.removesuffix(".attn.scores") for site in self.sites if not site.held)

    def _embeddings(self) -> None:
        """A factor for each row of the table, which layer normalization brings to one size whatever it was."""
        table, head = self._tensors[EMBEDDINGS], self._spec.head
        bound = size = np.abs(table).max(axis=1)
        if head is not None and head.tied:  # the same matrix makes logits
            logits = bounds.normed_product(table.T, *self._norm_of("head.norm"), None)
            bound = np.maximum(size, np.ldexp(logits, -self._tied(head.last_layer)))
        shift = self._shifts("embeddings", bound, size)
        self._put(EMBEDDINGS, self._matrix("embeddings", table, -shift[:, None]))
        self._factors("embeddings", shift)
        self._norm("embeddings.norm")

    def _tied(self, last: str) -> IntArray:
        """What is taken out of all inputs of a tied decoder and given back to all logits, [1]."""
        largest = bounds.after_norm(*self._norm_of("head.norm")).max(keepdims=True)
        shift = self._levels(f"{last}.in", largest)
        self._factors(f"{last}.in", -shift)
        self._factors(last, shift)
        return shift

    def _attention(self, layer: int) -> None:
        path, norm = f"layers.{layer}.attn", self._attention_norm(layer)
        if layer:
            self._norm(norm)
        enter = self._enter(f"{path}.in", bounds.after_norm(*self._norm_of(norm)))
        products = [self._normed_product(f"{path}.{name}", norm) for name in ("Wq", "Wk")]
        turn = self._turn(layer, norm, products)
        for name, bound, taken in zip(("Wq", "Wk"), products, (turn, -turn), strict=True):
            self._product(f"{path}.{name}", bound, enter, further=taken)
        bound = self._normed_product(f"{path}.Wv", norm)
        shift = self._values(f"{path}.v", bound)
        self._lasting(f"{path}.Wv", enter, shift)
        self._leave(f"{path}.Wo", bound, shift)

    def _attention_norm(self, layer: int) -> str:
        """The normalization that a layer's attention reads: the first has none of its own."""
        return f"layers.{layer}.attn_norm" if layer else "embeddings.norm"

    def _values(self, site: str, bound: FloatArray) -> IntArray:
        """What is taken out of each channel of the values, until attention's last product, [hidden]."""
        return self._levels(site, bound)

    def _turn(self, layer: int, norm: str, products: list[FloatArray]) -> IntArray:
        """What a head's queries give up and its keys take on before they meet, [hidden]: their products stay.

        Args:
            layer: its number.
            norm: what queries and keys are made of has left it.
            products: bounds of queries and keys as they leave their matrices.
        """
        path, spec = f"layers.{layer}.attn", self._spec
        rope = spec.global_rope if spec.layer_is_global[layer] else spec.local_rope
        factor = float(rope_tables(rope, spec.head_dim, 1)[0].max())  # at position 0: the factor of all of them
        q, k = (bounds.rotated(bound, spec.num_heads, factor) for bound in products)
        turn = np.zeros(spec.num_heads, np.int32)
        moved = (np.maximum(q, k) > LIMIT) | (np.minimum(q, k) < LEAST_BOUND)
        moved &= (q > 0) & (k > 0) & self._limited
        turn[moved] = np.round(np.log2(q[moved] / k[moved]) / 2)
        worst = float(np.maximum(np.ldexp(q, -turn), np.ldexp(k, turn)).max())
        self.sites.append(Site(f"{path}.qk", worst, int(np.abs(turn).max())))
        if self._limited and worst > 2 * LIMIT:
            raise PrecisionError(
                f"queries and keys of {path} could reach {worst:.3g}, FP16 holds 65504; "
                "take --precision bf16, on a GPU that has it"
            )
        norms = [self._head_norms(f"{path}.{name}", norm) for name in ("Wq", "Wk")]
        score = float((norms[0] * norms[1]).max()) * factor**2 * spec.head_dim**-0.5
        self.sites.append(Site(f"{path}.scores", score, 0, held=score <= MOST_SCORE or not self._limited))
        return np.repeat(turn, spec.head_dim)

    def _mlp(self, layer: int) -> None:
        path, norm = f"layers.{layer}.mlp", f"layers.{layer}.mlp_norm"
        self._norm(norm)
        enter = self._enter(f"{path}.in", bounds.after_norm(*self._norm_of(norm)))
        inputs = self._normed_product(f"{path}.Wi_input", norm)
        self._product(f"{path}.Wi_input", inputs, enter)
        gates = self._normed_product(f"{path}.Wi_gate", norm)
        matrix = np.ldexp(self._tensors[f"{path}.Wi_gate.weight"], enter[:, None])
        gate = self._shifts(f"{path}.gate", gates, _largest(matrix))
        self._lasting(f"{path}.Wi_gate", enter, gate)
        gated = gates * _activated(inputs, self._spec.activation)
        further = self._gated(f"{path}.gated", gated, gate)
        self._factors(f"{path}.gated", -further)
        self._leave(f"{path}.Wo", gated, gate + further)

    def _gated(self, site: str, bound: FloatArray, gate: IntArray) -> IntArray:
        """What is taken out of each input of the MLP's last product beside ``gate``, [inner]."""
        return self._levels(site, np.ldexp(bound, -gate))

    def _head(self, hidden: FloatArray) -> None:
        head = self._spec.head
        assert head is not None
        enter = self._enter("head.in", hidden)
        self._product("head.dense", self._normed_product("head.dense", "final_norm"), enter)
        self._norm("head.norm")
        last, normed = head.last_layer, bounds.after_norm(*self._norm_of("head.norm"))
        if is_exact(head):
            self._put(f"{last}.weight", self._tensors[f"{last}.weight"])
            self._bias(last, NONE)
            return
        if head.tied:
            self._bias(last, NONE)
        else:
            enter = self._enter(f"{last}.in", normed)
            self._product(last, self._normed_product(last, "head.norm"), enter)

    def _sentence(self, hidden: FloatArray) -> None:
        sentence = self._spec.sentence
        assert sentence is not None
        bound, pooled = hidden, False
        for step in sentence.steps:
            if step.on == SENTENCE and not pooled:
                pooled = True
                if sentence.pooling == "mean_sqrt_len":
                    bound = bound * np.float32(np.sqrt(self._spec.max_positions))
            if not isinstance(step, DenseSpec):
                bound = np.ones_like(bound)
                continue
            path = f"{step.folder}.linear"
            enter = self._enter(f"{path}.in", bound)
            bound = bounds.product(self._tensors[f"{path}.weight"], bound, self._tensors.get(f"{path}.bias"))
            self._product(path, bound, enter)
            bound = _activated(bound, step.activation)

    def _norm(self, path: str) -> None:
        for kind in ("weight", "bias"):
            if f"{path}.{kind}" in self._tensors:
                self._put(f"{path}.{kind}", self._tensors[f"{path}.{kind}"])

    def _norm_of(self, path: str) -> tuple[FloatArray, FloatArray | None]:
        return self._tensors[f"{path}.weight"], self._tensors.get(f"{path}.bias")

    def _normed_product(self, path: str, norm: str) -> FloatArray:
        bias = self._tensors.get(f"{path}.bias")
        return bounds.normed_product(self._tensors[f"{path}.weight"], *self._norm_of(norm), bias)

    def _head_norms(self, path: str, norm: str) -> FloatArray:
        matrix, bias = self._tensors[f"{path}.weight"], self._tensors.get(f"{path}.bias")
        return bounds.head_norms(matrix, *self._norm_of(norm), bias, self._spec.num_heads)

    def _enter(self, site: str, bound: FloatArray) -> IntArray:
        """What is taken out of a product's inputs, [in], and given to its matrix's rows."""
        shift = self._levels(site, bound)
        self._factors(site, -shift)
        return shift

    def _product(self, path: str, bound: FloatArray, enter: IntArray, further: IntArray = NONE) -> None:
        """A product whose outputs come back once they are float32, less the powers of two that go ``further``."""
        matrix = np.ldexp(self._tensors[f"{path}.weight"], enter[:, None])
        shift = self._shifts(path, bound, _largest(matrix))
        self._put(f"{path}.weight", self._matrix(path, matrix, -shift))
        self._factors(path, shift - further)
        self._bias(path, further)

    def _lasting(self, path: str, enter: IntArray, shift: IntArray) -> None:
        """A product whose outputs stay without what was taken out."""
        matrix = np.ldexp(self._tensors[f"{path}.weight"], enter[:, None])
        self._put(f"{path}.weight", self._matrix(path, matrix, -shift))
        self._bias(path, shift)

    def _leave(self, path: str, inputs: FloatArray, shift: IntArray) -> None:
        """The product that ends a block; ``shift`` was taken out of its inputs."""
        bound = bounds.product(self._tensors[f"{path}.weight"], inputs, self._tensors.get(f"{path}.bias"))
        self._product(path, bound, shift)

    def _levels(self, site: str, bound: FloatArray) -> IntArray:
        """Exponents to take out of each of a product's inputs: all within range, and near one another.

        Inputs of very different size have weights of very different size beside them, the small
        of which FP16 would round coarsely.
        """
        reach = _log2(bound)
        level = float(np.median(reach[bound > 0])) if (bound > 0).any() else 0.0
        usual = np.log2(LEAST_BOUND) <= level <= np.log2(LIMIT) - MOST_SPREAD
        near = usual & (np.abs(reach - level) <= MOST_SPREAD)
        to = level if usual else np.log2(LIFTED)
        return self._noted(site, bound, np.where(near | (bound == 0), 0.0, np.round(reach - to)))

    def _shifts(self, site: str, bound: FloatArray, size: FloatArray) -> IntArray:
        """Exponents to take out of each of a product's outputs.

        Args:
            site: what the value is, for the report.
            bound: what the channels could reach.
            size: the channels' largest weights, which FP16 has to hold.
        """
        needed = np.ceil(_log2(bound) - np.log2(LIMIT))
        exponent = _log2(size)
        shift = np.maximum(np.maximum(needed, 0), np.ceil(exponent - np.log2(MOST_WEIGHT)))
        too_small = (size > 0) & (exponent - shift < np.log2(LEAST_WEIGHT))
        shift = np.where(too_small, np.maximum(np.floor(exponent - np.log2(LEAST_WEIGHT)), needed), shift)
        return self._noted(site, bound, shift)

    def _noted(self, site: str, bound: FloatArray, shift: FloatArray) -> IntArray:
        """The exponents as whole numbers, none in BF16, once the report has them."""
        if not np.isfinite(bound).all():
            raise PrecisionError(f"{site} could be beyond float32 itself; look for weights that are not what they were")
        result: IntArray = np.maximum(shift, -MOST_LIFT).astype(np.int32) * np.int32(self._limited)
        self.sites.append(Site(site, float(bound.max()), int(np.abs(result).max())))
        return result

    def _matrix(self, path: str, matrix: FloatArray, shift: IntArray) -> npt.NDArray[np.generic]:
        """A matrix times 2**shift by column, in the type that its part of the model has."""
        kept = any(_belongs(path, part) for part in self._keep)
        with np.errstate(over="ignore"):
            result = np.ldexp(matrix, shift).astype(np.float32 if kept else self._dtype)
        if not np.isfinite(result).all():
            raise PrecisionError(f"weights of {path} are beyond FP16; take --precision bf16, on a GPU that has it")
        return result

    def _factors(self, site: str, shift: IntArray) -> None:
        """2**shift for the graph to multiply by, where any is not 1."""
        if np.abs(shift).max() > MOST_FACTOR:
            raise PrecisionError(f"{site} takes a factor of 2**{np.abs(shift).max()}; take --precision bf16 or fp32")
        if shift.any():
            self._put(f"{site}.scale", np.ldexp(np.float32(1), shift))

    def _bias(self, path: str, shift: IntArray) -> None:
        if f"{path}.bias" in self._tensors:
            self._put(f"{path}.bias", np.ldexp(self._tensors[f"{path}.bias"], -shift))


def _largest(matrix: FloatArray) -> FloatArray:
    """[in, out] -> the largest weight of each output, [out]."""
    return np.abs(matrix).max(axis=0)  # type: ignore[no-any-return]  # numpy types it as Any


def _log2(values: FloatArray) -> FloatArray:
    """The exponents of values, of 0 a very low one."""
    return np.log2(np.maximum(values, np.finfo(np.float32).tiny))  # type: ignore[no-any-return]  # numpy types it as Any


def _activated(bound: FloatArray, activation: str) -> FloatArray:
    """What an activation makes of values within a bound: no more than they were, but for sigmoid."""
    if activation == "sigmoid":
        return np.ones_like(bound)
    return np.minimum(bound, 1) if activation == "tanh" else bound


def _belongs(path: str, part: str) -> bool:
    """Whether a product belongs to a part of the model; what stands on the encoder is its head."""
    if part == "head":
        return path != "embeddings" and not within(path, "layers")
    return within(path, part)


def _checked(keep: Collection[str], spec: ModelSpec) -> tuple[str, ...]:
    parts = {"embeddings", "head"}
    for layer in range(spec.num_layers):
        parts |= {f"layers.{layer}", f"layers.{layer}.attn", f"layers.{layer}.mlp"}
    for name in keep:
        if name not in parts:
            raise InputError(
                f"keep_fp32 names {name!r}, expected embeddings, head, layers.N, layers.N.attn or layers.N.mlp "
                f"with N from 0 to {spec.num_layers - 1}"
            )
    return tuple(keep)
