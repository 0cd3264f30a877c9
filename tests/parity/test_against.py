"""Two bundles, directories or files against each other, without PyTorch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mbexport import export_onnx, validate
from mbexport.bundle.half import ensure_half_graph
from mbexport.errors import InputError
from mbexport.parity.diagnosis import search
from tests.checkpoints import ENCODER, EXAMPLE, edit_config, save_checkpoint
from tests.foreign import behind_output, foreign
from tests.parity.test_mutations import ignore_the_mask, mutant, replacing
from tests.parity.test_sentences import PIPELINES, save_pipeline

LENGTH = 130


def test_equal_bundles_and_files(tiny_bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_bundle, tmp_path / "other"))
    folder = foreign(tiny_bundle, tmp_path / "theirs")
    before = (other / "mbexport.json").read_bytes()
    for subject, against in (
        (other, tiny_bundle), (folder, tiny_bundle), (other, folder), (folder / "model.onnx", other / "onnx/model.onnx")
    ):  # fmt: skip
        report = validate(subject, against=against, max_length=LENGTH)
        assert report.passed
        assert report.reference.startswith(str(against))
        assert "model.onnx, fp32" in report.reference
        assert (report.recorded, report.half, report.notes) == (False, None, ())
        assert "torch" not in report.environment
    assert (other / "mbexport.json").read_bytes() == before  # a check is a proof against PyTorch


def test_a_mutant_fails_and_the_difference_of_the_configurations_is_noted(
    tiny: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = mutant(tiny, replacing(half_window=63), tmp_path / "mutant")
    report = validate(bundle, against=tiny_bundle, max_length=LENGTH)
    assert [graph.passed for graph in report.graphs] == [False, False]
    for graph in report.graphs:
        assert graph.diagnosis is not None
        (fault,) = graph.diagnosis.faults
        assert (fault.cause, fault.stages) == ("window", ("layers.1.attn", "layers.2.attn"))
    assert report.notes == ()  # its config.json is the checkpoint's
    edit_config(bundle, lambda config: config.update(local_attention=126))
    (note,) = validate(bundle, against=tiny_bundle, max_length=LENGTH).notes
    assert "differ in half_window" in note


def test_a_reference_that_names_none_of_its_values(tiny: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Nothing inside can be compared then, and the report says why."""
    bundle = mutant(tiny, replacing(half_window=63), tmp_path / "mutant")
    folder = foreign(tiny_bundle, tmp_path / "theirs", lambda model: model.ClearField("metadata_props"))
    other = foreign(bundle, tmp_path / "others", lambda model: model.ClearField("metadata_props"))
    for subject in (bundle, other):
        report = validate(subject, against=folder, max_length=LENGTH)
        assert not report.passed
        for graph in report.graphs:
            assert graph.diagnosis is not None
            assert "the reference, does not say which of its own are" in graph.diagnosis.conclusion


def test_a_reference_in_half_precision_finds_no_fault_in_a_right_graph(tiny: Path, tmp_path: Path) -> None:
    export_onnx(tiny, tmp_path / "bundle")
    ensure_half_graph(tmp_path / "bundle", "fp16")
    report = validate(tmp_path / "bundle", against=tmp_path / "bundle/onnx/model_fp16.onnx", max_length=66, bisect=True)
    assert report.passed
    assert all(graph.diagnosis is not None and graph.diagnosis.stages for graph in report.graphs)


def test_a_reference_that_is_no_number_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    """Else every graph that is held against it would be called wrong."""

    def spoilt(model: onnx.ModelProto) -> None:
        behind_output(model, ("Add", {}, [np.array(np.nan, np.float32)]))

    broken = foreign(tiny_bundle, tmp_path / "broken", spoilt)
    with pytest.raises(InputError, match="gives outputs that are no numbers for an input of"):
        validate(tiny_bundle, against=broken, max_length=LENGTH)


def test_an_implementation_of_pytorch_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="--reference eager is a way to run a --checkpoint"):
        validate(tiny_bundle, against=tiny_bundle, reference="eager")


def test_the_search_needs_no_pytorch(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = foreign(tiny_bundle, tmp_path / "theirs")
    ignore_the_mask(folder / "model.onnx")
    (graph,) = validate(folder, against=tiny_bundle, max_length=LENGTH).graphs
    assert graph.diagnosis is not None
    assert not graph.passed
    assert {fault.cause for fault in graph.diagnosis.faults} == {"mask dropped"}
    assert {stage.name for stage in graph.diagnosis.stages if stage.faulty} == {f"layers.{n}.attn" for n in range(4)}


def test_where_stages_are_not_known_it_is_said_which_inputs_fail(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "diagnose", lambda *_: None)
    folder = foreign(tiny_bundle, tmp_path / "theirs")
    ignore_the_mask(folder / "model.onnx")
    (graph,) = validate(folder, against=tiny_bundle, max_length=LENGTH).graphs
    assert graph.diagnosis is not None
    assert (graph.passed, graph.diagnosis.faults) == (False, ())
    assert "only those with padding on the right, on the left, in between" in graph.diagnosis.conclusion
    assert "no layer can be named" in graph.diagnosis.conclusion


def test_pytorch_is_not_loaded(tiny_bundle: Path) -> None:
    script = (
        "import sys, mbexport; r = mbexport.validate(sys.argv[1], against=sys.argv[1], max_length=70); "
        "print(r.passed, {'torch', 'transformers'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script, str(tiny_bundle)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "True set()"


DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "hidden size": ({"hidden_size": 32}, "hidden size is 32 and 64"),
    "layers": ({"num_hidden_layers": 3}, "number of layers is 3 and 4"),
    "vocabulary": ({"vocab_size": 500}, "vocabulary is 500 and 512"),
    "labels": ({"num_labels": 4}, "number of labels is 4 and 3"),
    "task": ({"architecture": ENCODER}, "task is feature-extraction and text-classification"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_different_models_are_refused(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    variant, message = DIFFERENT[name]
    export_onnx(save_checkpoint(tmp_path / "checkpoint", **variant), tmp_path / "bundle")
    with pytest.raises(InputError, match=f"are different models: {message}"):
        validate(tmp_path / "bundle", against=tiny_bundle)


def test_files_without_a_configuration(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = foreign(tiny_bundle, tmp_path / "theirs" / "onnx")
    (folder / "config.json").rename(folder.parent / "config.json")
    assert validate(folder / "model.onnx", against=tiny_bundle, max_length=70).passed  # it lies one folder up
    (folder.parent / "config.json").unlink()
    for subject, where in ((folder / "model.onnx", "beside it or one folder up"), (folder, "in it")):
        with pytest.raises(InputError, match=f"has no config.json {where}"):
            validate(subject, against=tiny_bundle)


def test_a_half_precision_reference_has_limits_of_half_precision(tiny: Path, tmp_path: Path) -> None:
    export_onnx(tiny, tmp_path / "bundle")
    ensure_half_graph(tmp_path / "bundle", "fp16")
    report = validate(tmp_path / "bundle", against=tmp_path / "bundle", max_length=70)
    assert "onnx/model.onnx, fp32" in report.reference  # the most exact of its graphs
    assert [graph.precision for graph in report.graphs] == ["fp32", "fp32", "fp16"]
    folder = tmp_path / "half"
    folder.mkdir()
    for name in ("model_fp16.onnx", "model_fp16.onnx_data"):
        shutil.copy(tmp_path / "bundle" / "onnx" / name, folder)
    shutil.copy(tmp_path / "bundle" / "config.json", folder)
    report = validate(foreign(tmp_path / "bundle", tmp_path / "exact"), against=folder, max_length=70)
    assert "model_fp16.onnx, fp16" in report.reference
    assert report.graphs[0].limits["max_error"] == 0.02 * report.graphs[0].spread
    assert report.graphs[0].overall.max_error > 1e-4  # the reference's own rounding


def test_other_tokens_are_noted(example_bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(example_bundle, tmp_path / "other"))
    assert validate(other, against=example_bundle, max_length=20).notes == ()
    path = other / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    for origin in ({"against": example_bundle}, {"checkpoint": EXAMPLE}):
        (note,) = validate(other, max_length=20, **origin).notes
        assert "gives other tokens than" in note
        assert "for 18 of 18 texts" in note


def test_a_pipeline_against_an_export_that_left_its_modules_out(tmp_path: Path) -> None:
    export_onnx(save_pipeline(tmp_path, *PIPELINES["dense"]()), tmp_path / "bundle")
    folder = foreign(tmp_path / "bundle", tmp_path / "theirs")
    for subject, other in ((folder, tmp_path / "bundle"), (tmp_path / "bundle", folder)):
        assert validate(subject, against=other, max_length=70).passed
