"""A checkpoint directory as one object: the first stage of the pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbexport.checkpoint.spec import ModelSpec, parse_config, parse_task
from mbexport.checkpoint.weights import Weights, expected_tensors
from mbexport.errors import CheckpointError
from mbexport.files import read_json

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration and weights were found to fit each other.

    What config.json leaves open was decided as transformers would, and is said in ``notes``.
    """

    directory: Path
    config: dict[str, Any]
    spec: ModelSpec
    weights: Weights
    max_length: int
    notes: tuple[str, ...]


def load_checkpoint(directory: Path) -> Checkpoint:
    """Read and check a directory saved by ``save_pretrained``; weights stay on disk.

    Raises:
        CheckpointError: what is wrong, where, and what to do.
    """
    if not directory.is_dir():
        kind = "is a file" if directory.exists() else "does not exist"
        raise CheckpointError(f"{directory} {kind}, expected a directory saved by save_pretrained")
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} holds no config.json, expected a directory saved by save_pretrained")
    config = read_json(directory / "config.json", CheckpointError)
    parse_task(config)  # before the weights: another model is told so first
    weights = Weights(directory)
    shape = weights.shape("classifier.weight")
    spec, notes = parse_config(config, shape[0] if shape else None)
    weights.require(expected_tensors(spec))
    max_length, length_notes = _max_length(directory, spec)
    if spec.classifier is None:
        notes.append("a bare encoder states no pooling: embed() takes the mean over a text's tokens")
    return Checkpoint(
        directory=directory,
        config=config,
        spec=spec,
        weights=weights,
        max_length=max_length,
        notes=(*notes, *weights.notes, *length_notes),
    )


def _max_length(directory: Path, spec: ModelSpec) -> tuple[int, list[str]]:
    """Tokens per text: what the tokenizer states, at most max_position_embeddings."""
    if not (directory / TOKENIZER).is_file():
        return spec.max_positions, [
            f"{directory} holds no {TOKENIZER}: the graphs are exported, but predict and the runtime need "
            "that file; put it into the bundle"
        ]
    path = directory / TOKENIZER_CONFIG
    stated = read_json(path, CheckpointError).get("model_max_length") if path.is_file() else None
    # transformers writes 1e30 where a tokenizer has no limit of its own.
    if not isinstance(stated, (int, float)) or not 1 <= stated <= spec.max_positions:
        return spec.max_positions, []
    return int(stated), []
