"""Somebody else's graphs: which can be compared, and what is said of those that cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from mbexport import export_onnx, validate
from mbexport.bundle.half import ensure_half_graph
from mbexport.cli import main
from mbexport.errors import BackendError, BundleError, InputError
from mbexport.parity.diagnosis import search
from tests.checkpoints import ENCODER, save_checkpoint
from tests.foreign import behind_output, foreign
from tests.parity.test_heads import VARIANTS as HEADS
from tests.parity.test_sentences import PIPELINES, save_pipeline

LENGTH = 80


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_directory_and_a_file_are_compared_and_left_as_they_are(
    tiny: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = foreign(tiny_bundle, tmp_path / "theirs")
    before = files(folder)
    for subject in (folder, folder / "model.onnx"):
        report = validate(subject, checkpoint=tiny, max_length=LENGTH)
        assert report.passed
        assert (report.subject, report.recorded) == (str(subject), False)
        (graph,) = report.graphs
        assert (graph.file, graph.precision, graph.diagnosis) == ("model.onnx", "fp32", None)
    result = run("validate", folder, "--checkpoint", tiny, "--max-length", LENGTH, "--report", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""  # nothing nags about a directory that is not ours to write to
    assert result.stdout.startswith(f"PASSED: 1 graph of {folder} against PyTorch")
    assert files(folder) == before
    assert set(files(tmp_path / "report")) == {"parity.json", "parity.html"}


def test_several_files_of_which_some_are_no_models(tiny: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    foreign(tiny_bundle, folder / "onnx", None)
    (folder / "onnx" / "config.json").rename(folder / "config.json")
    foreign(tiny_bundle, folder / "typed", lambda model: add_input(model, "token_type_ids"))
    report = validate(folder, checkpoint=tiny, max_length=LENGTH)
    assert [graph.file for graph in report.graphs] == ["onnx/model.onnx"]
    assert report.skipped == {
        "typed/model.onnx": "its inputs are input_ids, attention_mask, token_type_ids, "
        "expected input_ids and attention_mask"
    }


@pytest.mark.parametrize("name", [*HEADS, "bare encoder", *(f"pipeline: {name}" for name in ("mean", "dense"))])
def test_outputs_are_found_for_every_task(name: str, tmp_path: Path) -> None:
    if name.startswith("pipeline"):
        checkpoint = save_pipeline(tmp_path, *PIPELINES[name.removeprefix("pipeline: ")]())
    else:
        variant = HEADS.get(name, {"architecture": ENCODER})
        checkpoint = save_checkpoint(tmp_path / "checkpoint", **variant)
    export_onnx(checkpoint, tmp_path / "bundle")
    report = validate(foreign(tmp_path / "bundle", tmp_path / "theirs"), checkpoint=checkpoint, max_length=LENGTH)
    assert report.passed
    assert report.graphs[0].overall.max_error > 0  # another computation, really compared


def test_a_sole_output_may_have_any_name(tiny: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        behind_output(model, ("Identity", {}, []))
        model.graph.output[0].name = model.graph.node[-1].output[0] = "3721"

    assert validate(foreign(tiny_bundle, tmp_path / "x", rename), checkpoint=tiny, max_length=LENGTH).passed


def add_input(model: onnx.ModelProto, name: str) -> None:
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]))


def fix_axes(model: onnx.ModelProto) -> None:
    for value in model.graph.input:
        for dimension, size in zip(value.type.tensor_type.shape.dim, (1, 128), strict=True):
            dimension.dim_value = size


def narrow_ids(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32


def cut_labels(model: onnx.ModelProto) -> None:
    first = [np.array([value], np.int64) for value in (0, 2, 1)]
    behind_output(model, ("Slice", {}, first))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2


def cut_labels_unsaid(model: onnx.ModelProto) -> None:
    cut_labels(model)
    model.graph.output[0].type.tensor_type.ClearField("shape")


def store_codes(model: onnx.ModelProto) -> None:
    codes = numpy_helper.from_array(np.zeros((4000, 64), np.int8), "codes")
    model.graph.initializer.append(codes)


FAULTS: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "further input": (
        lambda model: add_input(model, "token_type_ids"),
        "inputs are input_ids, attention_mask, tok",
    ),
    "fixed axes": (fix_axes, "its input input_ids is fixed to 1 x 128; export it with dynamic"),
    "narrow ids": (narrow_ids, "its input input_ids is of type INT32, expected INT64"),
    "fewer labels": (cut_labels, "its output logits gives 2 numbers, the model has 3"),
    "fewer labels, unsaid": (cut_labels_unsaid, "logits has the shape 8x2, not the model's"),
    "codes": (store_codes, "its weights are int8 codes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_compared_is_one_sentence(fault: str, tiny: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    edit, message = FAULTS[fault]
    folder = foreign(tiny_bundle, tmp_path / "theirs", edit)
    for subject in (folder, folder / "model.onnx"):
        result = run("validate", subject, "--checkpoint", tiny, "--max-length", LENGTH)
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert message in line
        assert "model.onnx" in line


def test_places_without_graphs(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.onnx").write_bytes(b"\x00no model")
    (tmp_path / "text.onnx").write_text("no model")
    for name, error, message in (
        ("empty", BundleError, "holds no mbexport.json and no .onnx file"),
        ("none", BundleError, "does not exist"),
        ("damaged.onnx", InputError, "is no readable ONNX file"),
        ("text.onnx", InputError, "is no readable ONNX file"),
    ):
        with pytest.raises(error, match=message):
            validate(tmp_path / name, checkpoint=tiny)


def test_another_task_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", **HEADS["question answering"])
    with pytest.raises(InputError, match="outputs are logits, expected start_logits and end_logits for question-ans"):
        validate(foreign(tiny_bundle, tmp_path / "theirs"), checkpoint=checkpoint)


def test_half_precision_is_told_by_the_weights(tiny: Path, tmp_path: Path) -> None:
    """A foreign FP16 graph is held to what PyTorch's own FP16 run is off, an FP32 graph beside it to FP32's limit."""
    export_onnx(tiny, tmp_path / "bundle")
    ensure_half_graph(tmp_path / "bundle", "fp16")
    folder = foreign(tmp_path / "bundle", tmp_path / "theirs")
    for name in ("model_fp16.onnx", "model_fp16.onnx_data"):
        shutil.copy(tmp_path / "bundle" / "onnx" / name, folder)
    report = validate(folder, checkpoint=tiny, max_length=LENGTH)
    exact, half = report.graphs
    assert report.passed
    assert (exact.precision, half.precision) == ("fp32", "fp16")
    assert report.half is not None
    assert half.ratio == half.overall.max_error / report.half.max_error
    assert exact.limits["max_error"] < half.overall.max_error <= half.limits["max_error"]


def test_quantized_graphs_are_compared_with_bisect(
    tiny: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = foreign(tiny_bundle, tmp_path / "theirs", store_codes)
    report = validate(folder, checkpoint=tiny, max_length=LENGTH, bisect=True)
    (graph,) = report.graphs
    assert (graph.precision, graph.limits, report.skipped) == ("int8", {}, {})
    assert graph.diagnosis is not None
    result = run("validate", folder, "--checkpoint", tiny, "--max-length", LENGTH, "--bisect")
    assert "model.onnx: nothing broken found" in result.stdout
    monkeypatch.setattr(search, "diagnose", lambda *_: None)  # as if its inner values were not to be found
    result = run("validate", folder, "--checkpoint", tiny, "--max-length", LENGTH, "--bisect")
    assert (result.exit_code, result.stdout.split(":")[0]) == (0, "NOT JUDGED")
    assert "model.onnx: compared, not judged" in result.stdout


def test_a_graph_that_fails_on_some_lengths_is_a_finding(tiny: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """E.g. one whose positions end early: nothing is raised, and the report says which lengths and why."""

    def end_early(model: onnx.ModelProto) -> None:
        most = numpy_helper.from_array(np.arange(65, dtype=np.int64), "places")
        model.graph.initializer.append(most)
        first = model.graph.node[0]
        nodes = [
            helper.make_node("Shape", ["input_ids"], ["length_of_ids"], start=1, end=2),
            helper.make_node("Constant", [], ["one_before"], value_ints=[1]),
            helper.make_node("Sub", ["length_of_ids", "one_before"], ["last_place"]),
            helper.make_node("Gather", ["places", "last_place"], ["unused"]),
            helper.make_node("Sub", ["unused", "unused"], ["nothing"]),
            helper.make_node("Add", ["input_ids", "nothing"], ["ids_checked"]),
        ]
        for node in model.graph.node:
            node.input[:] = ["ids_checked" if name == "input_ids" else name for name in node.input]
        position = list(model.graph.node).index(first)
        for node in reversed(nodes):
            model.graph.node.insert(position, node)

    report = validate(foreign(tiny_bundle, tmp_path / "theirs", end_early), checkpoint=tiny, max_length=LENGTH)
    (graph,) = report.graphs
    assert not report.passed
    assert graph.diagnosis is not None
    (fault,) = graph.diagnosis.faults
    assert fault.cause == "does not run"
    assert "ONNX Runtime fails on inputs of 66 tokens" in fault.explanation
    assert [item.length for item in graph.inputs if item.max_error > graph.limits["max_error"]] == [66] * 4


def test_a_graph_that_cannot_be_loaded_fails_beside_one_that_holds(
    tiny: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "theirs"
    foreign(tiny_bundle, folder)
    shutil.copytree(tiny_bundle / "onnx", folder / "broken")
    (folder / "broken" / "model.onnx_data").unlink()
    (folder / "broken" / "model_ort.onnx").unlink()
    report = validate(folder, checkpoint=tiny, max_length=LENGTH)
    assert {graph.file: graph.passed for graph in report.graphs} == {"model.onnx": True, "broken/model.onnx": False}
    broken = next(graph for graph in report.graphs if not graph.passed)
    assert broken.diagnosis is not None
    assert [fault.cause for fault in broken.diagnosis.faults] == ["does not run"]
    assert "cannot be loaded by ONNX Runtime" in broken.diagnosis.conclusion
    with pytest.raises(BackendError, match="cannot be loaded by ONNX Runtime"):
        validate(folder / "broken" / "model.onnx", checkpoint=tiny, max_length=LENGTH)


def test_json_of_a_foreign_graph(tiny: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    folder = foreign(tiny_bundle, tmp_path / "theirs")
    result = run("validate", folder, "--checkpoint", tiny, "--max-length", LENGTH, "--json")
    report: dict[str, Any] = json.loads(result.stdout)
    graph = report["graphs"][0]
    assert len(graph["inputs"]) == graph["overall"]["rows"] == sum(f["rows"] for f in graph["by_length"].values())
    assert sum(graph["errors"]["counts"]) == 3 * graph["overall"]["rows"]
    assert {"python", "platform", "cpu", "onnxruntime", "torch", "transformers", "mbexport", "date"} <= set(
        report["environment"]
    )
