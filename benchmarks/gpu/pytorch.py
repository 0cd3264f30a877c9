"""ModernBERT by PyTorch on a GPU: padded with SDPA, unpadded with FlashAttention, compiled or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.gpu.varlen import BY_TEXT, Kernel, as_operator, best_kernel
from mbexport.bench.engines import PaddedEngine
from mbexport.bench.workloads import IntArray, Workload
from mbexport.errors import ContenderError

FloatArray = npt.NDArray[np.float32]
UNPADDED = "benchmark_unpadded"  # what transformers knows the attention of UnpaddedEngine by
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def load_model(checkpoint: str, attention: str, precision: str, device: str) -> Any:
    """transformers' own classifier; FP32 without TF32, which is transformers' and PyTorch's default."""
    transformers.logging.disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = False
    model = transformers.ModernBertForSequenceClassification.from_pretrained(
        checkpoint, attn_implementation=attention, dtype=DTYPES[precision], local_files_only=True
    )
    return model.to(device).eval()


def _described(attention: str, precision: str, compiled: str | None) -> str:
    how = f", torch.compile, mode {compiled}" if compiled else ""
    return f"{attention}, {precision}{how}"


class SdpaEngine(PaddedEngine):
    """Padded batches, PyTorch's scaled_dot_product_attention.

    Args:
        checkpoint: the model.
        precision: ``fp32`` or ``fp16``.
        device: ``cuda`` or ``cpu``.
        compiled: a mode of torch.compile; None runs as it is.
    """

    packages: tuple[str, ...] = ("torch", "transformers")

    def __init__(self, checkpoint: str, precision: str, device: str, compiled: str | None = None) -> None:
        model = load_model(checkpoint, "sdpa", precision, device)
        # CUDA graphs are of one shape each; for other modes shapes are unknown.
        self._model = torch.compile(model, mode=compiled, dynamic=compiled == "default") if compiled else model
        self._device = device
        self.description = _described("SDPA", precision, compiled)

    def forward(self, feed: dict[str, IntArray]) -> dict[str, FloatArray]:
        """One batch, from the host and back to it. Where nothing is padded no mask is given: SDPA is faster then."""
        padded = not feed["attention_mask"].all()
        names = ("input_ids", "attention_mask") if padded else ("input_ids",)
        with torch.inference_mode():
            given = {name: torch.from_numpy(feed[name]).to(self._device) for name in names}
            return {"logits": self._model(**given).logits.float().cpu().numpy()}


class UnpaddedEngine:
    """No padding anywhere: texts of a batch one after the other, attention by the fastest varlen kernel.

    Args:
        checkpoint: the model.
        precision: ``fp32`` or ``fp16``; a GPU's kernels take the latter.
        device: ``cuda`` or ``cpu``.
        compiled: a mode of torch.compile for the encoder; None runs it as it is.
        kernel: None takes the fastest that runs, on a CPU the definition.
    """

    packages: tuple[str, ...] = ("torch", "transformers")

    def __init__(
        self, checkpoint: str, precision: str, device: str, compiled: str | None = None, kernel: Kernel | None = None
    ) -> None:
        told: dict[str, str] = {}
        if kernel is None and device == "cpu":
            kernel = BY_TEXT
        if kernel is None:
            kernel, told = best_kernel(device, DTYPES[precision])
        if kernel is None:
            raise ContenderError("no FlashAttention runs here: " + "; ".join(f"{k} {v}" for k, v in told.items()))
        if compiled:
            kernel = as_operator(kernel)
        self.notes = told
        self.description = _described(kernel.name, precision, compiled)
        ALL_ATTENTION_FUNCTIONS.register(UNPADDED, _attention(kernel))
        self._whole = load_model(checkpoint, "sdpa", precision, device)
        self._whole.config._attn_implementation = UNPADDED
        encoder = self._whole.model
        self._encoder = torch.compile(encoder, mode=compiled, dynamic=True) if compiled else encoder
        self._mean = self._whole.config.classifier_pooling == "mean"
        self._device = device

    def prepare(self, workload: Workload) -> list[Sequence[IntArray]]:
        """The texts of each batch."""
        return [workload.texts[n : n + workload.batch] for n in range(0, len(workload.texts), workload.batch)]

    def run(self, prepared: list[Sequence[IntArray]]) -> list[FloatArray]:
        """Logits of each batch, [texts, labels]."""
        with torch.inference_mode():
            return [self._forward(texts) for texts in prepared]

    def _forward(self, texts: Sequence[IntArray]) -> FloatArray:
        lengths = np.array([len(text) for text in texts])
        ends = lengths.cumsum()
        positions = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        ids, positions, sizes = (
            torch.from_numpy(values).to(self._device) for values in (np.concatenate(texts), positions, lengths)
        )
        starts = torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).int()
        hidden = self._encoder(
            input_ids=ids[None], position_ids=positions[None], starts=starts, longest=int(lengths.max()),
            attention_mask={"full_attention": None, "sliding_attention": None},
        )[0][0]  # fmt: skip
        if self._mean:
            owner = torch.repeat_interleave(sizes, output_size=len(ids))  # the text of each token
            sums = torch.zeros(len(texts), hidden.shape[1], device=hidden.device)
            pooled = (sums.index_add_(0, owner, hidden.float()) / sizes[:, None]).to(hidden.dtype)
        else:
            pooled = hidden[starts[:-1]]
        return self._whole.classifier(self._whole.head(pooled)).float().cpu().numpy()

    def outputs(self, workload: Workload, results: list[FloatArray]) -> tuple[str, list[FloatArray]]:
        """Logits of each text."""
        del workload
        return "logits", list(np.concatenate(results))


def _attention(kernel: Kernel) -> Any:
    """The kernel as transformers calls an attention implementation: [1, heads, tokens, size] each."""

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **given: Any) -> tuple[Any, None]:
        del module, mask
        window = given["sliding_window"]  # transformers counts the token itself to it
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        reach = None if window is None else window - 1
        return kernel.call(q, k, v, given["starts"], given["longest"], reach)[None], None

    return attention
