"""Write a ModernBERT checkpoint of any size with random weights, from a seed; no torch needed.

    python benchmarks/make_checkpoint.py build/base

Weights are scaled so that attention is far from uniform. The config is of the generation
that both transformers 4 and 5 read.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from mbexport.checkpoint.spec import parse_config
from mbexport.checkpoint.weights import expected_tensors

SIZES = {
    "base": {"hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "intermediate_size": 2624, "num_hidden_layers": 28, "num_attention_heads": 16},
}
HEADS = ("head.", "classifier.", "decoder.")
CLASSIFIER = "ModernBertForSequenceClassification"


def config_of(size: str, labels: int, architecture: str) -> dict[str, object]:
    """The config.json of a model of one of SIZES."""
    return {
        "architectures": [architecture],
        "model_type": "modernbert",
        "vocab_size": 50_368,
        "max_position_embeddings": 8192,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0,
        "classifier_pooling": "mean",
        "problem_type": "single_label_classification",
        "id2label": {str(n): f"LABEL_{n}" for n in range(labels)},
        "label2id": {f"LABEL_{n}": n for n in range(labels)},
        **SIZES[size],
    }


def random_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Normal with a standard deviation that keeps activations near 1, scores near 2.5."""
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        return values * np.float32(0.1) + np.float32(0 if name.endswith("bias") else 1)
    if "tok_embeddings" in name:
        return values
    values *= np.float32(shape[1] ** -0.5)
    if name.endswith("Wqkv.weight"):
        values[: 2 * shape[1]] *= np.float32(1.6)
    return values


def write_checkpoint(
    directory: Path, size: str = "base", labels: int = 4, seed: int = 0, architecture: str = CLASSIFIER
) -> None:
    """Write config.json and model.safetensors."""
    config = config_of(size, labels, architecture)
    spec, _ = parse_config(config, labels)
    rng = np.random.default_rng(seed)
    tensors = {
        name if name.startswith(HEADS) else f"model.{name}": random_tensor(name, shape, rng)
        for name, shape in expected_tensors(spec).items()
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_checkpoint(arguments.directory, arguments.size, seed=arguments.seed)
