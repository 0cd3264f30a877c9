"""A checkpoint directory as one object: the first stage of the pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbexport.checkpoint.fields import Fields
from mbexport.checkpoint.head_config import parse_task
from mbexport.checkpoint.spec import ModelSpec, parse_config
from mbexport.checkpoint.weights import EMBEDDINGS, Weights, expected_tensors
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
    mask_token: str | None
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
    parse_task(Fields(config, "config.json"))  # before the weights: another model is told so first
    weights = Weights(directory)
    shape = weights.shape("classifier.weight")
    spec, notes = parse_config(config, shape[0] if shape else None)
    if spec.head is not None and spec.head.tied:
        weights.drop_tied(f"{spec.head.last_layer}.weight", EMBEDDINGS)
    weights.require(expected_tensors(spec))
    tokenizer_config = _tokenizer_config(directory)
    if not (directory / TOKENIZER).is_file():
        notes.append(
            f"{directory} holds no {TOKENIZER}: the graphs are exported, but predict and the runtime need "
            "that file; put it into the bundle"
        )
    if spec.head is None:
        notes.append("a bare encoder states no pooling: embed() takes the mean over a text's tokens")
    return Checkpoint(
        directory=directory,
        config=config,
        spec=spec,
        weights=weights,
        max_length=_max_length(tokenizer_config, spec),
        mask_token=_mask_token(tokenizer_config),
        notes=(*notes, *weights.notes),
    )


def _tokenizer_config(directory: Path) -> dict[str, Any]:
    path = directory / TOKENIZER_CONFIG
    return read_json(path, CheckpointError) if path.is_file() else {}


def _max_length(tokenizer_config: dict[str, Any], spec: ModelSpec) -> int:
    """Tokens per text: what the tokenizer states, at most max_position_embeddings."""
    stated = tokenizer_config.get("model_max_length")
    # transformers writes 1e30 where a tokenizer has no limit of its own.
    if not isinstance(stated, (int, float)) or not 1 <= stated <= spec.max_positions:
        return spec.max_positions
    return int(stated)


def _mask_token(tokenizer_config: dict[str, Any]) -> str | None:
    stated = tokenizer_config.get("mask_token")
    if isinstance(stated, dict):  # saved with the token's own settings
        stated = stated.get("content")
    return stated if isinstance(stated, str) else None
