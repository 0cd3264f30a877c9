"""What modules compute in the PyTorch model, taken by hooks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
import transformers

from mbexport.checkpoint.spec import ModelSpec
from mbexport.parity.diagnosis.scene import JOINED
from mbexport.parity.diagnosis.taps import OUTPUTS, Taps
from mbexport.parity.figures import FloatArray
from mbexport.parity.pytorch.reference import TorchReference
from mbexport.parity.samples import Case, places_of

ENTERING = {"attended": "Wo", "gated": "Wo"}  # what is no module's result enters one


class TorchTaps:
    """See :class:`mbexport.parity.diagnosis.taps.TapSource`; float32, by torch's exact kernels.

    Args:
        reference: the model.
        spec: the same model.
    """

    def __init__(self, reference: TorchReference, spec: ModelSpec) -> None:
        self._reference, self._spec = reference, spec

    def taps(self, case: Case, modules: Collection[str]) -> Taps:
        """See :meth:`TapSource.taps`."""
        found: Taps = {}
        handles = [self._hook(module, found) for module in modules if module != OUTPUTS]
        try:
            outputs = self._reference.run(case, places_of(case, self._spec))
        finally:
            for handle in handles:
                handle.remove()
        if OUTPUTS in modules:
            found[OUTPUTS] = outputs
        return found

    def _hook(self, path: str, found: Taps) -> Any:
        """Have ``found`` filled with the result of a module, or with what enters the next one."""
        parent, _, name = path.rpartition(".")
        if path == "pooled":
            return self._hook_pooled(found)
        if name in ENTERING:
            return self._entering(f"{parent}.{ENTERING[name]}", path, found)
        if name == "attn_residual":
            return self._entering(f"{parent}.mlp_norm", path, found)
        if name == "mlp_residual":
            layer = int(parent.rpartition(".")[-1]) + 1
            last = layer == self._spec.num_layers
            return self._entering("final_norm" if last else f"layers.{layer}.attn_norm", path, found)
        joined, part, parts = JOINED.get(name, (name, 0, 1))

        def keep(_module: Any, _entered: Any, result: torch.Tensor) -> None:
            found[path] = _array(result.chunk(parts, dim=-1)[part])

        return self._module(f"{parent}.{joined}" if parent else joined).register_forward_hook(keep)

    def _entering(self, module: str, path: str, found: Taps) -> Any:
        def keep(_module: Any, entered: tuple[torch.Tensor, ...]) -> None:
            found[path] = _array(entered[0])

        return self._module(module).register_forward_pre_hook(keep)

    def _hook_pooled(self, found: Taps) -> Any:
        if self._spec.sentence is None:
            return self._entering("head", "pooled", found)

        def keep(_module: Any, _entered: Any, features: dict[str, torch.Tensor]) -> None:
            found["pooled"] = _array(features["sentence_embedding"])

        poolings = (module for module in self._reference.model.modules() if type(module).__name__ == "Pooling")
        return next(poolings).register_forward_hook(keep)

    def _module(self, path: str) -> Any:
        """A module of the encoder, or of what stands on it."""
        model = self._reference.model
        if not path.startswith("head"):
            model = next(module for module in model.modules() if isinstance(module, transformers.ModernBertModel))
        return model.get_submodule(path)


def _array(values: torch.Tensor) -> FloatArray:
    array: FloatArray = np.array(values.detach().float().cpu().numpy())
    return array
