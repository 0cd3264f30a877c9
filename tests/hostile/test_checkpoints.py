"""Checkpoints whose files lie: refused in one line, before anything of the size that they claim is made."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.checkpoints import EXAMPLE, edit_config
from tests.hostile.bounded import Outcome, replaced, run_bounded

Spoil = Callable[[Path], object]


def config(**changes: Any) -> Spoil:
    """Fields of config.json changed, or with ... left out."""

    def change(values: dict[str, Any]) -> None:
        for name, value in changes.items():
            values.pop(name, None)
            if value is not ...:
                values[name] = value

    return lambda checkpoint: edit_config(checkpoint, change)


def rope(**values: Any) -> Spoil:
    return config(rope_parameters={"full_attention": {"rope_theta": 1e4, **values}})


text = partial(replaced, "config.json")


def nested(levels: int) -> Spoil:
    return text('"model_type"', f'"x": {"[" * levels}{"]" * levels}, "model_type"')


def header(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """The header of model.safetensors changed; the numbers behind it stay."""

    def spoil(checkpoint: Path) -> None:
        path = checkpoint / "model.safetensors"
        content = path.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        values = json.loads(content[8 : 8 + size])
        change(values)
        encoded = json.dumps(values).encode()
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + size :])

    return spoil


def tensor(name: str = "classifier.weight", **changes: Any) -> Spoil:
    return header(lambda values: values[name].update(changes))


def renamed(name: str) -> Spoil:
    return header(lambda values: values.update({name: values.pop("classifier.weight")}))


def empty_classifier(rows: int) -> Spoil:
    """A classifier of so many rows and no columns, which takes no byte, and no labels that would contradict."""

    def spoil(checkpoint: Path) -> None:
        def change(values: dict[str, Any]) -> None:
            start, end = values["classifier.weight"]["data_offsets"]
            values["classifier.weight"] |= {"shape": [rows, 0], "data_offsets": [start, start]}
            values["filler"] = {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}

        header(change)(checkpoint)
        config(id2label=..., label2id=..., num_labels=...)(checkpoint)

    return spoil


def many_tensors(checkpoint: Path) -> None:
    entry = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    encoded = ("{" + ",".join(entry % number for number in range(100_000)) + "}").encode()
    (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", len(encoded)) + encoded)


def large_header(checkpoint: Path) -> None:
    with (checkpoint / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", 101 * 10**6))
        stream.truncate(8 + 101 * 10**6)


def index(shard: object) -> Spoil:
    """Shards of any name, in the place of the one file."""

    def spoil(checkpoint: Path) -> None:
        (checkpoint / "model.safetensors").unlink()
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))

    return spoil


def shard_twice(checkpoint: Path) -> None:
    (checkpoint / "a.safetensors").symlink_to("model.safetensors.renamed")
    (checkpoint / "b.safetensors").symlink_to("model.safetensors.renamed")
    (checkpoint / "model.safetensors").rename(checkpoint / "model.safetensors.renamed")
    names = {"x": "a.safetensors", "y": "b.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def pipe(name: str) -> Spoil:
    def spoil(checkpoint: Path) -> None:
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).unlink(missing_ok=True)
        os.mkfifo(checkpoint / name)

    return spoil


def link(name: str, target: str) -> Spoil:
    def spoil(checkpoint: Path) -> None:
        (checkpoint / name).unlink(missing_ok=True)
        (checkpoint / name).symlink_to(target)

    return spoil


def modules(*entries: dict[str, Any], settings: str = "{}") -> Spoil:
    """A pipeline of an encoder and modules."""

    def spoil(checkpoint: Path) -> None:
        config(architectures=["ModernBertModel"])(checkpoint)
        first = {"type": "sentence_transformers.models.Transformer", "path": ""}
        (checkpoint / "modules.json").write_text(json.dumps([first, *entries]))
        (checkpoint / "config_sentence_transformers.json").write_text(settings)

    return spoil


def pooling(path: object) -> dict[str, Any]:
    return {"type": "sentence_transformers.models.Pooling", "path": path}


def pooling_pipe(checkpoint: Path) -> None:
    modules(pooling("1_Pooling"))(checkpoint)
    pipe("1_Pooling/config.json")(checkpoint)


def adapter(settings: dict[str, Any], **factors: tuple[int, ...]) -> Spoil:
    """An adapter of the checkpoint, with factors of any shape for one matrix."""

    def spoil(checkpoint: Path) -> None:
        base = checkpoint / "base"
        base.mkdir()
        for name in ("config.json", "model.safetensors"):
            (checkpoint / name).rename(base / name)
        common = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "base"}
        (checkpoint / "adapter_config.json").write_text(json.dumps(common | settings))
        shapes = {"A": (2, 64), "B": (192, 2)} | factors
        name = "base_model.model.model.layers.1.attn.Wqkv.lora_{}.weight"
        tensors = {name.format(factor): np.ones(shape, np.float32) for factor, shape in shapes.items()}
        save_file(tensors, checkpoint / "adapter_model.safetensors")

    return spoil


CASES: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "layers, a thousand million": (config(num_hidden_layers=10**9, layer_types=...), ("from 1 to 1024",)),
    "layers, sixteen million": (config(num_hidden_layers=2**24, layer_types=...), ("num_hidden_layers is 16777216",)),
    "layer_types, half a million": (config(layer_types=["full_attention"] * 500_000), ("layer_types", "at most 1024")),
    "hidden size": (config(hidden_size=10**12), ("hidden_size is 1000000000000",)),
    "hidden size below the limit": (config(hidden_size=2**23, max_position_embeddings=1), ("of another shape",)),
    "vocabulary": (config(vocab_size=2**24), ("tok_embeddings.weight [512, 64] instead of [16777216, 64]",)),
    "heads": (config(num_attention_heads=10**18), ("num_attention_heads",)),
    "window": (config(local_attention=10**18), ("local_attention",)),
    "positions": (config(max_position_embeddings=10**18), ("max_position_embeddings",)),
    "positions, 9 GB of angles": (config(max_position_embeddings=2**24), ("max_position_embeddings", "at most")),
    "labels": (config(num_labels=2**24, id2label=..., label2id=...), ("num_labels is 16777216",)),
    "labels, half a million": (config(id2label={str(n): "x" for n in range(500_000)}), ("500000 labels",)),
    "labels of an empty tensor": (empty_classifier(2**40), ("1099511627776 rows, expected at most 1048576",)),
    "label of infinity": (config(id2label=..., label2id={"a": float("inf")}), ("label2id",)),
    "label of half a character": (text("LABEL_1", "\\ud800"), ("config.json is not valid JSON",)),
    "a number of 4,000 digits": (config(vocab_size=10**3999), ("vocab_size",)),
    "a number of a million digits": (text('"vocab_size": 512', f'"vocab_size": {"9" * 10**6}'), ("config.json",)),
    "a float for a whole number": (config(hidden_size=64.0), ("hidden_size is 64.0",)),
    "a flag for a whole number": (config(num_attention_heads=True), ("num_attention_heads is True",)),
    "a text for a whole number": (config(intermediate_size="96"), ("intermediate_size is '96'",)),
    "theta 0": (rope(rope_theta=0), ("rope_theta is 0",)),
    "theta below 0": (rope(rope_theta=-1), ("rope_theta is -1",)),
    "theta infinite": (rope(rope_theta=float("inf")), ("rope_theta is inf",)),
    "theta 1e400": (text("160000.0", "1e400"), ("rope_theta is inf",)),
    "theta too small for float32": (rope(rope_theta=1e-320), ("rope_theta is 1e-320",)),
    "yarn that divides by 0": (rope(rope_type="yarn", rope_theta=1.0), ("rope_theta",)),
    "yarn beyond float32": (rope(rope_type="yarn", rope_theta=1e-29, factor=1e-29), ("rotary",)),
    "linear factor too small": (rope(rope_type="linear", factor=1e-320), ("factor is 1e-320",)),
    "eps NaN": (config(norm_eps=float("nan")), ("norm_eps is nan",)),
    "nested, parsed": (nested(200), ("config.json is not valid JSON", "nested")),
    "nested, not parsed": (nested(100_000), ("config.json is not valid JSON",)),
    "large JSON": (text('"model_type"', f'{" " * 2**24}"model_type"'), ("at most 16777216 are read",)),
    "offsets beyond the file": (tensor(data_offsets=[0, 10**12]), ("truncated or damaged",)),
    "offsets that overlap": (tensor(data_offsets=[0, 768]), ("truncated or damaged",)),
    "offsets of 64 bits": (tensor(data_offsets=[0, 2**64 - 1]), ("truncated or damaged",)),
    "shape that overflows": (tensor(shape=[2**32, 2**32, 4]), ("truncated or damaged",)),
    "negative shape": (tensor(shape=[-3, 64]), ("truncated or damaged",)),
    "type that there is not": (tensor(dtype="F128"), ("truncated or damaged",)),
    "many tensors": (many_tensors, ("100000 tensors, expected at most 65536",)),
    "header above 100 MB": (large_header, ("truncated or damaged",)),
    "a name with escapes": (renamed("\x1b[31m\n\x9bx"), ("1 unexpected",)),
    "a name of a megabyte": (renamed("x" * 10**6), ("1 unexpected",)),
    "shard with a path": (index("/etc/passwd"), ("lies outside",)),
    "shard above": (index(".."), ("lies outside",)),
    "shard with a drive": (index("C:x"), ("lies outside",)),
    "shard of a long name": (index("x" * 5000), ("which is missing",)),
    "one shard by two names": (shard_twice, ("twice",)),
    "config.json from a device": (link("config.json", "/dev/zero"), ("config.json",)),
    "tokenizer_config.json from the kernel": (link("tokenizer_config.json", "/proc/kmsg"), ("tokenizer_config.json",)),
    "folder's config.json a pipe": (pooling_pipe, ("a device or a pipe",)),
    "pipe for the first module": (pipe("model.safetensors"), ("no model.safetensors",)),
    **{
        f"module in {path!r}": (modules(pooling(path)), ("modules.json names the folder",))
        for path in ("..", ".", "", "/etc", "a/b", "..\\x", "onnx", "Engines", "reports", "mbexport.json", 5)
    },
    "many modules": (modules(*[{"type": "Normalize", "path": "n"}] * 1000), ("no list of modules, 64 at most",)),
    "default prompt that is a list": (
        modules({"type": "Normalize", "path": "n"}, settings='{"default_prompt_name": []}'),
        ("default_prompt_name",),
    ),
    "adapter of rank 0": (adapter({}, A=(0, 64), B=(192, 0)), ("rank 0",)),
    "adapter that would fill the memory": (adapter({}, A=(1, 10**6), B=(10**6, 1)), ("[1000000, 1000000]",)),
    "adapter of task []": (adapter({"task_type": []}), ("task_type",)),
    "alpha of infinity": (adapter({"lora_alpha": float("inf")}), ("lora_alpha",)),
    "alpha that overflows": (adapter({"lora_alpha": 10**400}), ("lora_alpha",)),
    "pattern that takes for ever": (adapter({"alpha_pattern": {"([a-zA-Z.0-9]+)+!": 1}}), ("for ever",)),
    "pattern of many choices": (adapter({"alpha_pattern": {"(l|l)" * 15: 1}}), ("for ever",)),
    "many patterns": (adapter({"alpha_pattern": {str(n): 1 for n in range(10_000)}}), ("at most 128",)),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("hostile")
    commands = []
    for number, (spoil, _) in enumerate(CASES.values()):
        checkpoint = Path(shutil.copytree(tiny, folder / str(number)))
        spoil(checkpoint)
        commands.append(["onnx", checkpoint, "-o", folder / "bundle"])
    found = run_bounded(commands)
    assert not (folder / "bundle").exists()
    return dict(zip(CASES, found, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_lie_is_refused_within_bounds(name: str, outcomes: dict[str, Outcome]) -> None:
    outcomes[name].assert_refused(*CASES[name][1])


def test_what_is_large_and_true_is_taken(tiny: Path, tmp_path: Path) -> None:
    """A million positions, and an index whose map names tensors that there are not: the shards count."""
    long = Path(shutil.copytree(tiny, tmp_path / "long"))
    config(max_position_embeddings=2**20)(long)
    sharded = Path(shutil.copytree(tiny, tmp_path / "sharded"))
    index("model-1.safetensors")(sharded)
    shutil.copy(tiny / "model.safetensors", sharded / "model-1.safetensors")
    patterned = Path(shutil.copytree(tiny, tmp_path / "patterned"))
    adapter({"alpha_pattern": {r"layers\.\d+.*Wqkv": 4, "^model.layers.1.attn.Wqkv": 2}})(patterned)
    for outcome in run_bounded([["onnx", path, "-o", f"{path}-bundle"] for path in (long, sharded, patterned)]):
        assert outcome.code == 0, outcome.stderr


def test_a_tokenizer_that_is_none_is_no_part_of_a_bundle(tiny: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny, tmp_path / "checkpoint"))
    shutil.copy(EXAMPLE / "tokenizer_config.json", checkpoint)
    (checkpoint / "tokenizer.json").write_text("root:x:0:0:root:/root:/bin/bash")
    (outcome,) = run_bounded([["onnx", checkpoint, "-o", tmp_path / "bundle", "-q"]])
    outcome.assert_refused("tokenizer.json is not valid JSON")
