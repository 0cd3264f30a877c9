"""A checkpoint becomes a bundle directory, which appears whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

from mbexport.bundle.weights import write_fp32_weights
from mbexport.checkpoint.load import TOKENIZER, Checkpoint
from mbexport.disk.claims import claimed
from mbexport.disk.links import outside
from mbexport.disk.writing import check_space, check_target, new_directory
from mbexport.errors import CheckpointError
from mbexport.files import (
    LARGEST_TOKENIZER,
    MAX_JSON_BYTES,
    Progress,
    no_progress,
    read_json_value,
    to_json,
    write_atomically,
)
from mbexport.manifest import Graph, Manifest, Sentence, Source, WeightsFile, write

FP32_DATA_FILE = "onnx/model.onnx_data"
EXTERNAL_DATA = {"model.onnx": 1}  # how transformers.js learns of FP32_DATA_FILE
# Files of a checkpoint that a bundle carries along, where they are there; of folders of modules, these.
CARRIED = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
CARRIED_OF_MODULES = ("config.json", "model.safetensors")
SPARE_BYTES = 16 * 2**20  # graphs, tokenizer and manifest beside the weights


def write_bundle(
    checkpoint: Checkpoint,
    target: Path,
    *,
    packed: bool = False,
    force: bool = False,
    progress: Progress = no_progress,
) -> Manifest:
    """Write all of a bundle.

    Args:
        checkpoint: what to export.
        target: the bundle's directory.
        packed: write the portable graph in its packed form, too.
        force: replace a bundle that is there.
        progress: called after each tensor.

    Raises:
        InputError: ``packed``, and the model cannot be.
        BundleError: ``target`` is taken, or cannot be written.
        CheckpointError: a weight holds NaN or infinity, or a file to carry along is none, or a link to elsewhere.
    """
    check_target(target, force=force)
    if packed:
        from mbexport.bundle.graphs import check_packable

        check_packable(checkpoint.spec)  # before any work is done
    with new_directory(target, replace=force, alone=claimed(target, progress)) as directory:
        checkpoint.weights.begin_hash()  # on another core: the import of onnx_ir takes 0.2 s, then weights are written
        from mbexport.bundle.graphs import write_graphs

        check_space(directory, target, checkpoint.weights.fp32_bytes() + SPARE_BYTES)
        (directory / "onnx").mkdir()
        placed, weights_file = write_fp32_weights(
            directory / FP32_DATA_FILE, checkpoint.spec, checkpoint.weights, progress
        )
        graphs = write_graphs(checkpoint.spec, placed, directory, weights_file.file, packed=packed)
        _carry_along(checkpoint, directory)
        config = checkpoint.config | {"transformers.js_config": {"use_external_data_format": EXTERNAL_DATA}}
        write_atomically(directory / "config.json", to_json(config) + "\n")
        manifest = _manifest(checkpoint, checkpoint.weights.sha256(), weights_file, graphs)
        write(manifest, directory)
    return manifest


def _carry_along(checkpoint: Checkpoint, directory: Path) -> None:
    """Copy a checkpoint's further files into a bundle: none but those of known names, JSON that is JSON.

    A bundle is given away, so nothing else of the machine must get into it, by links for example.

    Raises:
        CheckpointError: a file is not what its name says, or a link to outside of the checkpoint.
    """
    for name in CARRIED:
        if source := checkpoint.file(name):
            _carry(source, checkpoint, directory / name)
    for folder in checkpoint.spec.sentence.folders if checkpoint.spec.sentence else ():
        if not any((path / folder).is_dir() for path in checkpoint.directories):  # a Normalize may have no folder
            continue
        (directory / folder).mkdir()
        for name in CARRIED_OF_MODULES:
            if source := checkpoint.file(f"{folder}/{name}"):
                _carry(source, checkpoint, directory / folder / name)


def _carry(source: Path, checkpoint: Checkpoint, target: Path) -> None:
    elsewhere = [outside(source, path) for path in checkpoint.directories]
    if None not in elsewhere:
        raise CheckpointError(
            f"{source} is a link to {elsewhere[0]}, outside of the checkpoint, and would get into the bundle; "
            "put a copy in its place"
        )
    if source.suffix == ".json":
        read_json_value(source, CheckpointError, LARGEST_TOKENIZER if source.name == TOKENIZER else MAX_JSON_BYTES)
    shutil.copyfile(source, target)


def _manifest(
    checkpoint: Checkpoint, source_hash: str, weights_file: WeightsFile, graphs: tuple[Graph, ...]
) -> Manifest:
    head, pipeline = checkpoint.spec.head, checkpoint.spec.sentence
    sentence = None
    if pipeline is not None:
        sentence = Sentence(pipeline.normalized, dict(pipeline.prompts), pipeline.default_prompt, pipeline.truncate_dim)
    return Manifest(
        source=Source(checkpoint.directory.resolve().name, source_hash),
        task=checkpoint.spec.task,
        max_length=checkpoint.max_length,
        mask_token=checkpoint.mask_token if checkpoint.spec.task == "fill-mask" else None,
        labels=head.labels or None if head else None,
        problem_type=head.problem_type if head else None,
        activation=head.score_function if head else "none",
        pooling=head.pooling if head else pipeline.pooling if pipeline else "mean",
        sentence=sentence,
        weights=(weights_file,),
        graphs=graphs,
        notes=checkpoint.notes,
    )
