from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mbexport import manifest as manifests
from mbexport.errors import BundleError
from mbexport.manifest import Check, Engine, Graph, Manifest, Source, WeightsFile

FULL = Manifest(
    source=Source("model", "ab"),
    task="text-classification",
    max_length=512,
    labels=("no", "ja \u2713"),
    problem_type="single_label_classification",
    activation="softmax",
    pooling="mean",
    weights=(WeightsFile("onnx/model.onnx_data", 4, "cd"),),
    graphs=(Graph("onnx/model.onnx", "fp32", "portable", 20, "ef"),),
    checks=(Check("parity", "eager", {"max_error": 1e-6}, True),),
    notes=("a guess",),
)


def test_read_gives_what_was_written(tmp_path: Path) -> None:
    manifests.write(FULL, tmp_path)
    assert manifests.read(tmp_path) == FULL
    assert [path.name for path in tmp_path.iterdir()] == ["mbexport.json"]


def test_a_check_replaces_its_predecessor() -> None:
    again = FULL.with_check(Check("parity", "sdpa", {}, False))
    assert [check.reference for check in again.checks] == ["sdpa"]
    assert len(FULL.with_check(Check("other", "sdpa", {}, True)).checks) == 2


def test_what_was_checked_of_a_graph_goes_with_it() -> None:
    file = FULL.graphs[0].file
    checks = tuple(Check(what, "", {}, True) for what in (f"parity of {file}", f"quality of {file}", "quality of x"))
    left = replace(FULL, checks=checks).without_graph(file)
    assert [check.what for check in left.checks] == ["quality of x"]
    assert left.graphs == ()


def test_the_graph_of_an_engine_is_that_of_its_digest() -> None:
    (graph,) = FULL.graphs
    engine = Engine("e", "t4", "7.5", "int8", "tensorrt", "10", "1x1:1x1:1x1", "0", 1, graph.file, graph.sha256)
    assert FULL.origin(engine) == graph
    assert FULL.origin(replace(engine, graph_sha256="0")) is None
    assert FULL.origin(replace(engine, graph="onnx/other.onnx")) is None


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "schema_version is 2": lambda raw: raw.update(schema_version=2),
    "task is 'x'": lambda raw: raw.update(task="x"),
    "max_length is 0": lambda raw: raw.update(max_length=0),
    "labels is 'x'": lambda raw: raw.update(labels="x"),
    "source is None": lambda raw: raw.pop("source"),
    "graphs is": lambda raw: raw["graphs"][0].update(opset="20"),
    "graphs is [{'file": lambda raw: raw["graphs"][0].update(gate=True),
    "activation_bits: int | None": lambda raw: raw["graphs"][0].update(activation_bits="8"),
    "weights is": lambda raw: raw["weights"][0].pop("bytes"),
    "'../model.onnx', which lies outside": lambda raw: raw["graphs"][0].update(file="../model.onnx"),
    "'/etc/x', which lies outside": lambda raw: raw["weights"][0].update(file="/etc/x"),
    "'onnx/', which lies outside": lambda raw: raw["weights"][0].update(file="onnx/"),
    "or is no file's name": lambda raw: raw["graphs"][0].update(file="x" * 5000),
    "'..\\\\x', which": lambda raw: raw["graphs"][0].update(file="..\\x"),
    "'C:x', which": lambda raw: raw["graphs"][0].update(file="C:x"),
    "'a\\x00b', which": lambda raw: raw["graphs"][0].update(file="a\0b"),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damage_is_named(message: str, tmp_path: Path) -> None:
    raw = json.loads(FULL.to_json())
    DAMAGES[message](raw)
    (tmp_path / "mbexport.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError) as raised:
        manifests.read(tmp_path)
    expected = message.replace("schema_version is", "has schema_version")
    assert expected in str(raised.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "\xff", "[" * 100_000])
def test_what_is_no_json_object_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "mbexport.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(BundleError, match=r"mbexport\.json"):
        manifests.read(tmp_path)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no bundle"):
        manifests.read(tmp_path)


def test_graphs_of_manifests_before_int8_have_no_bits_and_no_gate(tmp_path: Path) -> None:
    raw = json.loads(FULL.to_json())
    for name in ("activation_bits", "gate"):
        del raw["graphs"][0][name]
    (tmp_path / "mbexport.json").write_text(json.dumps(raw))
    assert manifests.read(tmp_path) == FULL
    raw["graphs"][0].update(activation_bits=7, gate="passed")
    (tmp_path / "mbexport.json").write_text(json.dumps(raw))
    (graph,) = manifests.read(tmp_path).graphs
    assert (graph.activation_bits, graph.gate) == (7, "passed")


def test_graphs_of_manifests_that_name_no_kept_parts_have_none(tmp_path: Path) -> None:
    raw = json.loads(FULL.to_json())
    del raw["graphs"][0]["keep_fp32"]
    (tmp_path / "mbexport.json").write_text(json.dumps(raw))
    assert manifests.read(tmp_path) == FULL
    raw["graphs"][0]["keep_fp32"] = ["head", "layers.0"]
    (tmp_path / "mbexport.json").write_text(json.dumps(raw))
    assert manifests.read(tmp_path).graphs[0].keep_fp32 == ("head", "layers.0")


@pytest.mark.parametrize("value", ["head", None, [0], ["head", None]])
def test_kept_parts_are_a_list_of_texts(value: object, tmp_path: Path) -> None:
    raw = json.loads(FULL.to_json())
    raw["graphs"][0]["keep_fp32"] = value
    (tmp_path / "mbexport.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=r"graphs is .*keep_fp32: tuple"):
        manifests.read(tmp_path)
