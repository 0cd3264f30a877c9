"""A checkpoint directory as one object: the first stage of the pipeline."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbexport.checkpoint.adapters import MergedWeights, adapted_config, is_adapter, read_adapter
from mbexport.checkpoint.fields import Fields
from mbexport.checkpoint.head_config import parse_task
from mbexport.checkpoint.sentence_config import (
    MODULES,
    SETTINGS,
    DenseSpec,
    SentenceSpec,
    parse_sentence,
    read_modules,
    with_cross_encoder,
)
from mbexport.checkpoint.spec import ModelSpec, parse_config
from mbexport.checkpoint.weights import EMBEDDINGS, Weights, expected_tensors, read_tensors
from mbexport.errors import BundleError, CheckpointError
from mbexport.files import read_json
from mbexport.manifest import Manifest
from mbexport.tokenizer_file import read_tokenizer

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration and weights were found to fit each other.

    ``directories``: where its other files are, the first that has one counts (an adapter's,
    then its base's). What config.json leaves open was decided as transformers would, and is
    said in ``notes``.
    """

    directories: tuple[Path, ...]
    config: dict[str, Any]
    spec: ModelSpec
    weights: Weights
    max_length: int
    mask_token: str | None
    notes: tuple[str, ...]

    @property
    def directory(self) -> Path:
        """The directory that the user named."""
        return self.directories[0]

    def file(self, name: str) -> Path | None:
        """A file of the checkpoint, None where there is none of that name."""
        return _find(self.directories, name)


def load_checkpoint(directory: Path, base: Path | None = None) -> Checkpoint:
    """Read and check a directory saved by ``save_pretrained``; weights stay on disk.

    Args:
        directory: a model, or a LoRA adapter that PEFT saved.
        base: an adapter's base model; None takes the one that the adapter names.

    Raises:
        CheckpointError: what is wrong, where, and what to do.
    """
    if not directory.is_dir():
        kind = "is a file" if directory.exists() else "does not exist"
        raise CheckpointError(f"{directory} {kind}, expected a directory saved by save_pretrained")
    if is_adapter(directory):
        adapter = read_adapter(directory, base)
        weights = MergedWeights(adapter)
        shape = weights.shape("classifier.weight")
        base_config = read_json(adapter.base / "config.json", CheckpointError)
        config = adapted_config(adapter, base_config, shape[0] if shape else None)
        return _check((directory, adapter.base), config, weights)
    if base is not None:
        raise CheckpointError(f"{directory} is no adapter, so it has no --base; leave that out")
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} holds no config.json, expected a directory saved by save_pretrained")
    config = read_json(directory / "config.json", CheckpointError)
    parse_task(Fields(config, "config.json"))  # before the weights: another model is told so first
    return _check((directory,), config, Weights(directory))


def _check(directories: tuple[Path, ...], config: dict[str, Any], weights: Weights) -> Checkpoint:
    """Hold configuration, weights and tokenizer against each other."""
    shape = weights.shape("classifier.weight")
    settings = _find(directories, SETTINGS)
    config = with_cross_encoder(config, read_json(settings, CheckpointError) if settings else {})
    modules = _find(directories, MODULES)
    home = modules.parent if modules else directories[0]
    spec, notes = read_spec(home, config, shape[0] if shape else None)
    if spec.sentence is not None:
        _give_dense(home, spec.sentence, weights)
    if spec.head is not None and spec.head.tied:
        weights.drop_tied(f"{spec.head.last_layer}.weight", EMBEDDINGS)
    expected = expected_tensors(spec)
    if isinstance(weights, MergedWeights):
        weights.keep_only(set(expected))
    weights.require(expected)
    if spec.head is None and spec.sentence is None:
        notes.append("a bare encoder states no pooling: embed() takes the mean over a text's tokens")
    notes += _tokenizer_notes(directories, spec)
    path = _find(directories, TOKENIZER_CONFIG)
    tokenizer_config = read_json(path, CheckpointError) if path else {}
    path = _find(directories, SPECIAL_TOKENS)
    special_tokens = read_json(path, CheckpointError) if path else {}
    return Checkpoint(
        directories=directories,
        config=config,
        spec=spec,
        weights=weights,
        max_length=max_length_of(tokenizer_config, spec),
        mask_token=_mask_token(tokenizer_config) or _mask_token(special_tokens),
        notes=(*notes, *weights.notes),
    )


def _tokenizer_notes(directories: tuple[Path, ...], spec: ModelSpec) -> list[str]:
    """What will keep the runtime from tokenizing; the graphs do not depend on it."""
    path = _find(directories, TOKENIZER)
    if path is None:
        return [
            f"{directories[0]} holds no {TOKENIZER}: the graphs are exported, but predict and the runtime need "
            "that file; put it into the bundle"
        ]
    try:
        largest = max(read_tokenizer(path, spec.max_positions).get_vocab().values(), default=0)
    except BundleError as cause:
        return [f"predict and the runtime will fail: {cause}"]
    if largest < spec.vocab_size:
        return []
    return [
        f"{path} has ids up to {largest}, the embedding {spec.vocab_size} rows: texts with tokens beyond them fail; "
        "resize_token_embeddings was left out, or the tokenizer is another model's"
    ]


def _find(directories: tuple[Path, ...], name: str) -> Path | None:
    return next((path / name for path in directories if (path / name).is_file()), None)


def read_spec(directory: Path, config: dict[str, Any], classifier_rows: int | None) -> tuple[ModelSpec, list[str]]:
    """The model that a checkpoint's directory (or a bundle's) describes, and a sentence for every guess it took.

    Args:
        directory: where modules.json is, if the model is a sentence-transformers pipeline.
        config: the parsed config.json.
        classifier_rows: outputs of the classifier, where that is known.

    Raises:
        CheckpointError: what is not supported.
    """
    spec, notes = parse_config(config, classifier_rows)
    modules = read_modules(directory) if (directory / MODULES).is_file() else None
    if modules is None:
        return spec, notes
    if spec.head is not None:
        raise CheckpointError(
            f"{directory / MODULES} lists modules after a {spec.task} head, expected a bare ModernBertModel"
        )
    return dataclasses.replace(spec, sentence=parse_sentence(directory, modules, spec.hidden_size)), notes


def read_bundle_spec(bundle: Path, manifest: Manifest) -> ModelSpec:
    """The model that a bundle holds.

    Raises:
        BundleError: config.json is missing or damaged.
        CheckpointError: it was edited into something that is not supported.
    """
    return read_spec(bundle, read_json(bundle / "config.json", BundleError), len(manifest.labels or ()) or None)[0]


def _give_dense(directory: Path, sentence: SentenceSpec, weights: Weights) -> None:
    """Add the weights of a pipeline's dense layers, which lie in folders of their own."""
    for step in sentence.steps:
        if isinstance(step, DenseSpec):
            file = directory / step.folder / "model.safetensors"
            if not file.is_file():
                raise CheckpointError(
                    f"{file} is missing; save the model again as safetensors (a pickle is never opened)"
                )
            weights.further_files.append(file)
            for name, array in read_tensors(file).items():
                weights.give(f"{step.folder}.{name}", array)


def max_length_of(tokenizer_config: dict[str, Any], spec: ModelSpec) -> int:
    """Tokens per text: what a tokenizer_config.json states, at most max_position_embeddings."""
    if spec.sentence is not None and spec.sentence.max_length is not None:
        return min(spec.sentence.max_length, spec.max_positions)
    stated = tokenizer_config.get("model_max_length")
    # transformers writes 1e30 where a tokenizer has no limit of its own.
    if not isinstance(stated, (int, float)) or not 1 <= stated <= spec.max_positions:
        return spec.max_positions
    return int(stated)


def _mask_token(settings: dict[str, Any]) -> str | None:
    stated = settings.get("mask_token")
    if isinstance(stated, dict):  # saved with the token's own settings
        stated = stated.get("content")
    return stated if isinstance(stated, str) else None
