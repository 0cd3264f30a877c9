"""Factors moved between the modules of a checkpoint, so that the function in float32 stays what it was."""

from __future__ import annotations

import numpy as np
import torch


class Rescaling:
    """Tensors of a checkpoint, to be rescaled by powers of two: so every product of float32 stays the same."""

    def __init__(self, tensors: dict[str, torch.Tensor], seed: int) -> None:
        self._tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        self._prefix = "model." if any(name.startswith("model.") for name in tensors) else ""
        self._rng = np.random.default_rng(seed)
        self._layers = [f"layers.{number}" for number in range(sum(name.endswith("mlp.Wo.weight") for name in tensors))]

    def _tensor(self, module: str, kind: str = "weight") -> torch.Tensor | None:
        """None where there is none: biases and heads are optional."""
        encoder = module.startswith(("embeddings.", "layers.", "final_norm"))
        return self._tensors.get(f"{self._prefix if encoder else ''}{module}.{kind}")

    def _weight(self, module: str) -> torch.Tensor:
        weight = self._tensor(module)
        assert weight is not None, module
        return weight

    def _give(self, module: str, out: torch.Tensor | None = None, taken: torch.Tensor | None = None) -> None:
        """Multiply a module's outputs by ``out``, [out]; its inputs were multiplied by ``taken``, [in]."""
        for kind in ("weight", "bias"):
            tensor = self._tensor(module, kind)
            if tensor is None:
                continue
            if out is not None:
                tensor.mul_(out[:, None] if tensor.dim() == 2 else out)
            if taken is not None and tensor.dim() == 2:
                tensor.div_(taken)
