"""Smoothing: factors that move outliers from activations into weights, and leave the function as it was.

After Xiao et al., "SmoothQuant" (2023), https://arxiv.org/abs/2211.10438. What enters a product is
divided by a factor for each channel, the matrix's rows are multiplied by it, and the division is
folded into what made the values: the norm's weight; of attention's output the columns of values; of
the gated MLP the columns of its gate, the half of Wi that no activation follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.sites import attention_input, attention_output, mlp_gated, mlp_input

FloatArray = npt.NDArray[np.float32]
Tensors = Mapping[str, FloatArray]


class SmoothedTensors(Tensors):
    """A model's tensors with smoothing folded in; the same function, but for rounding in float32.

    The first layer's attention has no norm of its own: the embeddings' norm feeds the residual stream,
    too. Its division is a tensor more, ``layers.0.attn.in.scale``, which the graph multiplies by.

    Args:
        spec: the model.
        tensors: its tensors by name, matrices [in, out].
        factors: by name of the site, [in], all above 0; what the site's values are divided by.
    """

    def __init__(self, spec: ModelSpec, tensors: Tensors, factors: Mapping[str, FloatArray]) -> None:
        self._tensors = tensors
        self._rows: dict[str, FloatArray] = {}  # by tensor, [in]
        self._columns: dict[str, FloatArray] = {}  # by tensor, the last axis
        self._made: dict[str, FloatArray] = {}
        for number in range(spec.num_layers):
            self._smooth_layer(f"layers.{number}", factors, first=number == 0)

    def _smooth_layer(self, layer: str, factors: Mapping[str, FloatArray], *, first: bool) -> None:
        makers = {
            attention_input(layer): None if first else f"{layer}.attn_norm",
            attention_output(layer): f"{layer}.attn.Wv",
            mlp_input(layer): f"{layer}.mlp_norm",
            mlp_gated(layer): f"{layer}.mlp.Wi_gate",
        }
        for site, maker in makers.items():
            if site.name not in factors:
                continue
            factor = factors[site.name]
            for matrix in site.matrices:
                self._rows[f"{matrix}.weight"] = factor
            if maker is None:
                self._made[f"{site.name}.scale"] = np.float32(1) / factor
            else:
                for kind in ("weight", "bias"):
                    self._columns[f"{maker}.{kind}"] = np.float32(1) / factor

    def __getitem__(self, name: str) -> FloatArray:
        if name in self._made:
            return self._made[name]
        tensor = self._tensors[name]
        if name in self._rows:
            tensor = tensor * self._rows[name][:, None]
        return tensor * self._columns[name] if name in self._columns else tensor

    def changes(self, name: str) -> bool:
        """Whether a tensor is another than the model's own."""
        return name in self._made or name in self._rows or name in self._columns

    def __iter__(self) -> Iterator[str]:
        yield from self._tensors
        yield from self._made

    def __len__(self) -> int:
        return len(self._tensors) + len(self._made)
