"""Bundles whose files lie: refused in one line that names the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.bounded import Outcome, replaced, run_bounded

Spoil = Callable[[Path], object]


def manifest(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(bundle: Path) -> None:
        path = bundle / "mbexport.json"
        raw = json.loads(path.read_text())
        change(raw)
        path.write_text(json.dumps(raw))

    return spoil


def fields(**values: Any) -> Spoil:
    return manifest(lambda raw: raw.update(values))


raw_text = partial(replaced, "mbexport.json")


def weights(file: str) -> Spoil:
    return manifest(lambda raw: raw["weights"].append({"file": file, "bytes": 1, "sha256": "0"}))


def special(name: str, make: Callable[[Path], object]) -> Spoil:
    def spoil(bundle: Path) -> None:
        (bundle / name).unlink()
        make(bundle / name)

    return spoil


def zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def edited(bundle: Path) -> None:
    path = bundle / "onnx" / "model_ort.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(bundle: Path) -> None:
    path = bundle / "onnx" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def sentence(**values: Any) -> Spoil:
    return fields(task="feature-extraction", sentence={"normalized": True, "prompts": {}} | values)


PREDICT, INSPECT = ("predict", "{}", "a text"), ("inspect", "{}")
CASES: dict[str, tuple[Spoil, tuple[str, ...], tuple[str, ...]]] = {
    "a graph twice": (manifest(lambda raw: raw["graphs"].append(raw["graphs"][0])), PREDICT, ("model.onnx' twice",)),
    "a graph in other letters": (weights("ONNX/Model.onnx"), PREDICT, ("twice",)),
    "weights that are the manifest": (weights("mbexport.json"), PREDICT, ("as a graph, weights",)),
    "weights that are config.json": (weights("Config.json"), PREDICT, ("as a graph, weights",)),
    "weights of infinite size": (raw_text('"bytes": ', '"bytes": 1e400, "x": '), PREDICT, ("weights is",)),
    "weights of no size": (raw_text('"bytes": ', '"bytes": NaN, "x": '), PREDICT, ("weights is",)),
    "max_length": (fields(max_length=10**18), PREDICT, ("max_length", "at most 16777216")),
    "fewer labels": (fields(labels=["a"]), PREDICT, ("1 labels",)),
    "a million labels": (fields(labels=["a"] * 10**6), PREDICT, ("1000000 labels",)),
    "half a character": (fields(labels=["\ud800"] * 5), PREDICT, ("mbexport.json is not valid JSON",)),
    "prompts that are no texts": (sentence(prompts={"a": 5}), PREDICT, ("sentence is",)),
    "a default prompt that there is not": (sentence(default_prompt="b"), PREDICT, ("sentence is",)),
    "vectors cut below 0": (sentence(truncate_dim=-5), PREDICT, ("sentence is",)),
    "nested": (raw_text('"checks": []', '"checks": ' + "[" * 10**5), PREDICT, ("is not valid JSON",)),
    "nested, parsed": (raw_text('"notes"', f'"x": {"[" * 300 + "]" * 300}, "notes"'), INSPECT, ("is not valid JSON",)),
    "100 MB": (raw_text("{", "{" + " " * 10**8), PREDICT, ("at most 16777216 are read",)),
    "task question-answering": (fields(task="question-answering"), PREDICT, ("end_logits",)),
    "task multiple-choice": (fields(task="multiple-choice"), PREDICT, ("multiple-choice",)),
    "task token-classification": (fields(task="token-classification"), PREDICT, ("logits of whole texts",)),
    "task feature-extraction": (fields(task="feature-extraction"), PREDICT, ("last_hidden_state",)),
    "an edited graph": (edited, PREDICT, ("onnx/model_ort.onnx has the SHA-256", "was changed")),
    "a graph cut short": (cut, PREDICT, ("onnx/model.onnx has the SHA-256", "was changed")),
    "an edited graph, prepacked": (edited, ("prepack", "{}"), ("onnx/model_ort.onnx has the SHA-256",)),
    "an edited graph, packaged": (edited, ("package", "{}", "-o", "{}-out"), ("onnx/model_ort.onnx has the SHA-256",)),
    "an edited graph, measured": (edited, ("bench", "{}", "--shapes", "1x8"), ("onnx/model_ort.onnx has the SHA",)),
    "an edited graph, for TensorRT": (edited, ("trt", "{}", "--gpu", "t4"), ("onnx/model_ort.onnx has the SHA",)),
    "a manifest from a pipe": (special("mbexport.json", os.mkfifo), PREDICT, ("mbexport.json",)),
    "a manifest without an end": (special("mbexport.json", zero), PREDICT, ("mbexport.json",)),
    "config.json from a pipe": (special("config.json", os.mkfifo), INSPECT, ("config.json is a device or a pipe",)),
    "config.json without an end": (special("config.json", zero), INSPECT, ("config.json is a device or a pipe",)),
    "a tokenizer without an end": (special("tokenizer.json", zero), PREDICT, ("tokenizer.json",)),
    "a graph from a pipe": (special("onnx/model_ort.onnx", os.mkfifo), PREDICT, ("model_ort.onnx is missing",)),
    "a graph that is a folder": (special("onnx/model_ort.onnx", Path.mkdir), PREDICT, ("model_ort.onnx is missing",)),
    "weights from a pipe": (special("onnx/model.onnx_data", os.mkfifo), PREDICT, ("model.onnx_data has 0 bytes",)),
    "weights without an end": (special("onnx/model.onnx_data", zero), PREDICT, ("model.onnx_data has 0 bytes",)),
}


@pytest.fixture(scope="module")
def outcomes(example_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("hostile")
    commands = []
    for number, (spoil, command, _) in enumerate(CASES.values()):
        bundle = folder / str(number)
        shutil.copytree(example_bundle, bundle)
        spoil(bundle)
        commands.append([word.replace("{}", str(bundle)) for word in command])
    return dict(zip(CASES, run_bounded(commands), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_bundle_that_lies_is_refused(name: str, outcomes: dict[str, Outcome]) -> None:
    outcomes[name].assert_refused(*CASES[name][2])


def test_config_json_that_does_not_fit_the_weights_is_told(example_bundle: Path, tmp_path: Path) -> None:
    commands, expected = [], []
    for name, value in (("num_hidden_layers", 9), ("vocab_size", 10), ("max_position_embeddings", 9000)):
        bundle = Path(shutil.copytree(example_bundle, tmp_path / name))
        config = json.loads((bundle / "config.json").read_text())
        config[name] = value
        if name == "num_hidden_layers":
            config["layer_types"] = None
        (bundle / "config.json").write_text(json.dumps(config))
        commands.append(["trt", bundle, "--gpu", "t4"])
        expected.append("by config.json")
    for outcome, message in zip(run_bounded(commands), expected, strict=True):
        outcome.assert_refused(message)


def test_packed_weights_are_verified_and_never_waited_for(example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    made, good = run_bounded([["prepack", bundle], ["inspect", bundle, "--verify"]])
    assert (made.code, good.code) == (0, 0), (made.stderr, good.stderr)
    data = bundle / "prepacked" / "model_ort" / "model_ort_prepacked.onnx_data"
    assert not data.stat().st_mode & 0o111  # mapped, never run
    content = bytearray(data.read_bytes())
    content[5000] ^= 1
    data.write_bytes(content)
    (edited,) = run_bounded([["inspect", bundle, "--verify"]])
    assert edited.code == 1
    assert f"{data.relative_to(bundle)}: it is not what mbexport prepack wrote" in edited.stderr
    data.unlink()
    os.mkfifo(data)
    verified, predicted = run_bounded([["inspect", bundle, "--verify"], ["predict", bundle, "a text"]])
    assert (verified.code, predicted.code) == (1, 0)
    assert "incomplete" in predicted.stderr
