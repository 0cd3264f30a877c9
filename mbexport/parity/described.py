"""What a checkpoint, a bundle or a directory of graphs says of its model: config.json, tokenizer, lengths."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbexport import manifest as manifests
from mbexport.checkpoint.load import Checkpoint, max_length_of, read_bundle_spec, read_spec
from mbexport.checkpoint.spec import ModelSpec
from mbexport.errors import BundleError, InputError
from mbexport.files import read_json

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
# Fields of a specification that a different model is told by, and their names in words.
TELLING = {
    "task": "task",
    "hidden_size": "hidden size",
    "num_layers": "number of layers",
    "vocab_size": "vocabulary",
    "intermediate_size": "intermediate size",
    "num_heads": "number of attention heads",
}


@dataclass(frozen=True)
class Described:
    """A model as its files describe it; the inputs of a comparison are made of this.

    ``max_length``: tokens of a text; ``tokenizer``: its file, None where there is none.
    """

    path: Path
    config: dict[str, Any]
    spec: ModelSpec
    max_length: int
    tokenizer: Path | None

    @property
    def pad_id(self) -> int:
        """What stands in padded places, where it must only be an id that exists."""
        stated = self.config.get("pad_token_id")
        return stated if type(stated) is int and 0 <= stated < self.spec.vocab_size else 0

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the outputs, where they have some."""
        return self.spec.head.labels if self.spec.head is not None else ()


def of_checkpoint(checkpoint: Checkpoint) -> Described:
    """A checkpoint's own description."""
    return Described(
        checkpoint.directory, checkpoint.config, checkpoint.spec, checkpoint.max_length, checkpoint.file(TOKENIZER)
    )


def is_bundle(path: Path) -> bool:
    """Whether a directory is a bundle."""
    return (path / manifests.FILE_NAME).is_file()


def home_of(path: Path) -> Path:
    """Where config.json and tokenizer.json of graphs lie: the directory, or of a file its folder, or one folder up."""
    if path.is_dir():
        return path
    return next((folder for folder in (path.parent, path.parent.parent) if (folder / CONFIG).is_file()), path.parent)


def of_graphs(path: Path) -> Described:
    """What a bundle, a directory of graphs or a graph says of its model.

    Raises:
        InputError: there is no config.json.
        BundleError: there is nothing of that name, or a bundle is damaged.
        CheckpointError: config.json describes what is not supported.
    """
    if is_bundle(path):
        manifest = manifests.read(path)
        spec, length = read_bundle_spec(path, manifest), manifest.max_length
        config = read_json(path / CONFIG, BundleError)
        return Described(path, config, spec, length, _existing(path / TOKENIZER))
    if not path.exists():
        raise BundleError(f"{path} does not exist: expected a bundle, an ONNX file, or a directory with some")
    home = home_of(path)
    if not (home / CONFIG).is_file():
        where = "beside it or one folder up" if path.is_file() else "in it"
        raise InputError(f"{path} has no {CONFIG} {where}, which says what model it is; put the checkpoint's there")
    config = read_json(home / CONFIG, InputError)
    spec, _ = read_spec(home, config, None)
    settings = _existing(home / TOKENIZER_CONFIG)
    length = max_length_of(read_json(settings, InputError) if settings else {}, spec)
    return Described(path, config, spec, length, _existing(home / TOKENIZER))


def reconciled(reference: Described, subject: Described) -> tuple[Described, list[str]]:
    """The model of two that are compared, and what is to be said of where their descriptions differ.

    Raises:
        InputError: they are different models; names the first difference.
    """
    first, second = reference.spec, subject.spec
    for name, words in TELLING.items():
        _refuse(reference, subject, words, getattr(first, name), getattr(second, name))
    if first.head is not None and second.head is not None:
        words = "number of labels" if first.head.labels else "number of outputs"
        _refuse(reference, subject, words, first.head.outputs, second.head.outputs)
    if first.sentence is None and second.sentence is not None:  # modules.json lies beside one of them only
        first = dataclasses.replace(first, sentence=second.sentence)
    if second.sentence is None and first.sentence is not None:
        second = dataclasses.replace(second, sentence=first.sentence)
    differing = [
        field.name
        for field in dataclasses.fields(first)
        if getattr(first, field.name) != getattr(second, field.name) and field.name != "max_positions"
    ]
    notes = []
    if differing:
        what = f"the configurations of {subject.path} and {reference.path} differ in {', '.join(differing)}"
        notes.append(f"{what}; texts and lengths are by the latter")
    length = min(reference.max_length, subject.max_length)
    return dataclasses.replace(reference, spec=first, max_length=length), notes


def _refuse(reference: Described, subject: Described, words: str, first: object, second: object) -> None:
    if first != second:
        raise InputError(
            f"{subject.path} and {reference.path} are different models: {words} is {second} and {first}; "
            "compare exports of one checkpoint"
        )


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
