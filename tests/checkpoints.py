"""Seeded checkpoints for tests, saved by transformers itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

EXAMPLE = Path(__file__).parent.parent / "examples" / "news_topics" / "checkpoint"
CLASSIFIER, ENCODER = "ModernBertForSequenceClassification", "ModernBertModel"

TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "num_labels": 3,
}


def save_checkpoint(directory: Path, architecture: str = CLASSIFIER, seed: int = 0, **config: Any) -> Path:
    """A random model of transformers' own class, whose attention is far from uniform."""
    import torch
    import transformers

    settings = transformers.ModernBertConfig(**(TINY | config))
    torch.manual_seed(seed)
    model = getattr(transformers, architecture)(settings)
    randomise(model, settings.hidden_size)
    model.save_pretrained(directory)
    return directory


def randomise(model: torch.nn.Module, hidden: int) -> None:
    """Attention scores of a standard deviation of about 2.5, norms and biases that are not 1 and 0."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif parameter.dim() == 1:
                parameter.normal_(1, 0.1)
            elif "tok_embeddings" in name:
                parameter.normal_(0, 1)
            else:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
            if name.endswith("Wqkv.weight"):
                parameter[: 2 * hidden] *= 1.6


def edit_config(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite config.json in place."""
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Rewrite model.safetensors in place."""
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path)


def copy_example(directory: Path) -> Path:
    """The trained example, where a test may change it."""
    return Path(shutil.copytree(EXAMPLE, directory))


def torch_model(directory: Path, implementation: str = "eager") -> Any:
    """The checkpoint as transformers loads it."""
    import torch
    import transformers

    architecture = json.loads((directory / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(
        directory, attn_implementation=implementation, dtype=torch.float32
    )
    return model.eval()


def torch_output(model: Any, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits, or the last hidden state of a bare encoder."""
    import torch

    with torch.inference_mode():
        output = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    return output[0].numpy()
