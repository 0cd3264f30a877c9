"""The PyTorch model that graphs are compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from mbexport.checkpoint.load import Checkpoint
from mbexport.checkpoint.weights import COMPILED_PREFIX
from mbexport.errors import InputError
from mbexport.options import REFERENCES
from mbexport.parity.samples import IntArray


def choose_reference(wanted: str) -> str:
    """``auto`` becomes the strongest implementation that this machine can run.

    Raises:
        InputError: an unknown name, or ``flash_attention_2`` where it cannot run.
    """
    if wanted not in REFERENCES:
        raise InputError(f"reference is {wanted!r}, expected one of {', '.join(REFERENCES)}")
    has_flash = torch.cuda.is_available() and find_spec("flash_attn") is not None
    if wanted == "auto":
        return "flash_attention_2" if has_flash else "sdpa"
    if wanted == "flash_attention_2" and not has_flash:
        raise InputError("flash_attention_2 needs a GPU and the package flash-attn; take --reference sdpa or eager")
    return wanted


class TorchReference:
    """The checkpoint in PyTorch, in float32 (FlashAttention: float16, which it needs).

    Args:
        checkpoint: what was exported.
        implementation: ``eager``, ``sdpa`` or ``flash_attention_2``.

    Attributes:
        is_half: whether it computes in float16.
    """

    def __init__(self, checkpoint: Checkpoint, implementation: str) -> None:
        self._implementation = implementation
        self.is_half = implementation == "flash_attention_2"
        self._device = "cuda" if self.is_half else "cpu"
        self._output = "logits" if checkpoint.spec.classifier else "last_hidden_state"
        config = transformers.ModernBertConfig.from_pretrained(checkpoint.directory)
        if checkpoint.spec.classifier:
            config.num_labels = len(checkpoint.spec.classifier.labels)
        config._attn_implementation = implementation
        model_class = getattr(transformers, checkpoint.config["architectures"][0])
        model = model_class(config)
        # Read and loaded strictly by PyTorch's own means, not by the exporter's.
        tensors = {}
        for file in checkpoint.weights.files:
            tensors.update({name.replace(COMPILED_PREFIX, ""): t.float() for name, t in load_file(file).items()})
        if not any(name.startswith("model.") for name in model.state_dict()):
            tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        model.load_state_dict(tensors, strict=True)
        self._model = model.eval().to(self._device, torch.float16 if self.is_half else torch.float32)

    @property
    def description(self) -> str:
        """Implementation, element type and versions, for reports."""
        kernel = " (torch's CPU flash kernel)" if self._implementation == "sdpa" else ""
        dtype = "float16" if self.is_half else "float32"
        return (
            f"{self._implementation}{kernel}, {dtype}, torch {torch.__version__}, "
            f"transformers {transformers.__version__}"
        )

    def run(self, input_ids: IntArray, attention_mask: IntArray) -> npt.NDArray[np.float32]:
        """Logits [batch, labels], or for a bare encoder the last hidden state [batch, sequence, hidden]."""
        with torch.inference_mode(), self._kernel():
            outputs = self._model(
                input_ids=torch.from_numpy(input_ids).to(self._device),
                attention_mask=torch.from_numpy(attention_mask).to(self._device),
            )
        values: npt.NDArray[np.float32] = outputs[self._output].float().cpu().numpy()
        return values

    @contextlib.contextmanager
    def _kernel(self) -> Iterator[None]:
        if self._implementation == "sdpa":
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                yield
        else:
            yield
