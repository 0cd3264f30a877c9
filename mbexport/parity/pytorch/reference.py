"""The PyTorch model that graphs are compared with."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from mbexport.checkpoint.adapters import MergedWeights
from mbexport.checkpoint.load import Checkpoint
from mbexport.checkpoint.sentence_config import MODULES
from mbexport.checkpoint.weights import WRAPPER_PREFIX, Weights
from mbexport.errors import CheckpointError, InputError
from mbexport.files import read_json_value
from mbexport.optional import require
from mbexport.options import REFERENCES
from mbexport.parity.samples import Case, IntArray

OWN_MODULES = "sentence_transformers."
HEAD_MODULES = ("head.", "classifier.", "decoder.")  # what stands beside the bare model in a wrapper


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
    """The checkpoint in PyTorch.

    Args:
        checkpoint: what was exported.
        implementation: ``eager``, ``sdpa`` or ``flash_attention_2``, which runs on a GPU.
        dtype: of weights and values; None for float32 (FlashAttention: float16, which it needs, or bfloat16).

    Attributes:
        is_half: whether it computes in float16 or bfloat16.
        model: the module, of transformers or of sentence-transformers.

    Raises:
        InputError: transformers does not take the checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint, implementation: str, dtype: torch.dtype | None = None) -> None:
        flash = implementation == "flash_attention_2"
        self._implementation = implementation
        self._dtype = dtype or (torch.float16 if flash else torch.float32)
        self.is_half = self._dtype != torch.float32
        self._device = "cuda" if flash else "cpu"
        self._task = checkpoint.spec.task
        self._sentence = checkpoint.spec.sentence
        if self._sentence is not None:
            self.model: Any = _sentence_transformer(checkpoint, implementation, self._device, self._dtype)
            return
        try:
            self.model = self._load(checkpoint)
        except Exception as cause:
            raise InputError(f"transformers {transformers.__version__} cannot load the checkpoint: {cause}") from cause

    def _load(self, checkpoint: Checkpoint) -> Any:
        implementation = self._implementation
        head = checkpoint.spec.head
        config = transformers.ModernBertConfig(**(checkpoint.config | {"return_dict": True}))
        if head is not None and head.labels:
            config.num_labels = len(head.labels)
        config._attn_implementation = implementation
        model = getattr(transformers, checkpoint.config["architectures"][0])(config)
        tensors = _state(checkpoint)
        if head is not None and head.tied:
            tensors.setdefault("decoder.weight", tensors["model.embeddings.tok_embeddings.weight"])
        model.load_state_dict(tensors, strict=True)
        return model.eval().to(self._device, self._dtype)

    @property
    def description(self) -> str:
        """Implementation, element type and versions, for reports."""
        kernel = " (torch's CPU flash kernel)" if self._implementation == "sdpa" else ""
        dtype = str(self._dtype).removeprefix("torch.")
        return (
            f"{self._implementation}{kernel}, {dtype}, torch {torch.__version__}, "
            f"transformers {transformers.__version__}"
        )

    def run(self, case: Case, places: IntArray | None) -> npt.NDArray[np.float32]:
        """Outputs of one case, [units, outputs].

        Args:
            case: the inputs.
            places: the tokens wanted, laid out in one row; None for outputs of whole texts.
        """
        ids, mask = (torch.from_numpy(x).to(self._device) for x in (case.input_ids, case.attention_mask))
        with torch.inference_mode(), self._kernel():
            try:
                values = self._forward(ids, mask, places)
            except Exception as cause:
                shape = "x".join(map(str, case.input_ids.shape))
                raise InputError(f"PyTorch failed on an input of shape {shape}: {cause}") from cause
        array: npt.NDArray[np.float32] = values.float().cpu().numpy()
        return array

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, places: IntArray | None) -> Any:
        model = self.model
        if self._sentence is not None:
            features = model({"input_ids": ids, "attention_mask": mask})
            if places is None:
                return features["sentence_embedding"]
            return features["token_embeddings"].flatten(0, 1)[torch.from_numpy(places).to(self._device)]
        if self._task == "multiple-choice":  # one choice of each question
            return model(input_ids=ids[:, None], attention_mask=mask[:, None]).logits
        if places is None:
            return model(input_ids=ids, attention_mask=mask).logits
        tokens = torch.from_numpy(places).to(self._device)
        if self._task == "fill-mask":  # the vocabulary's logits of all tokens would not fit
            hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
            return model.decoder(model.head(hidden.flatten(0, 1)[tokens]))
        outputs = model(input_ids=ids, attention_mask=mask)
        if self._task == "question-answering":
            values = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)
        else:
            values = outputs.logits if self._task == "token-classification" else outputs.last_hidden_state
        return values.flatten(0, 1)[tokens]

    def _kernel(self) -> contextlib.AbstractContextManager[None]:
        if self._implementation == "sdpa":
            return sdpa_kernel(SDPBackend.FLASH_ATTENTION)
        return contextlib.nullcontext()


def _state(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The weights by the names of transformers' module.

    A plain checkpoint is read by PyTorch's own means, not by the exporter's; a merged adapter
    exists only in the exporter's memory.
    """
    if isinstance(checkpoint.weights, MergedWeights):
        named = {name: torch.from_numpy(array) for name, array in checkpoint.weights.read(checkpoint.weights.names())}
    else:
        named = {
            Weights.canonical(name): tensor.float()
            for file in checkpoint.weights.files
            for name, tensor in load_file(file).items()
        }
    if checkpoint.spec.head is None:
        return named
    return {name if name.startswith(HEAD_MODULES) else f"{WRAPPER_PREFIX}{name}": t for name, t in named.items()}


def _sentence_transformer(checkpoint: Checkpoint, implementation: str, device: str, dtype: torch.dtype) -> Any:
    """The whole pipeline as sentence-transformers runs it.

    Raises:
        InputError: modules.json names a class of somebody else's, which sentence-transformers before version 6 would
            import, from the checkpoint itself; or it does not take the checkpoint.
    """
    require("sentence_transformers")
    modules = checkpoint.file(MODULES)
    for module in read_json_value(modules, CheckpointError) if modules else ():
        if not module["type"].startswith(OWN_MODULES):
            raise InputError(
                f"{modules} names the class {module['type']!r:.80}, and only what is of {OWN_MODULES}* is imported; "
                "compare with another export of the checkpoint: --against"
            )
    from sentence_transformers import SentenceTransformer

    settings = {"attn_implementation": implementation, "torch_dtype": dtype, "use_safetensors": True}
    try:
        return SentenceTransformer(
            str(checkpoint.directory),
            device=device,
            model_kwargs=settings,
            local_files_only=True,
            trust_remote_code=False,
        ).eval()
    except Exception as cause:
        raise InputError(f"sentence-transformers cannot load {checkpoint.directory}: {cause}") from cause
