"""Two commands on somebody else's export: optimum writes it, `mbexport validate` says whether it is right, and where.

optimum 2.1 with transformers 4 (`make .venv-optimum/ready`) traces the model in PyTorch. What was found by hand,
against transformers 5: such a graph is right at every length and padding where config.json leaves bases and layers
at their defaults, and silently wrong where it does not: transformers 4 reads neither rope_parameters nor layer_types.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from mbexport import export_onnx, validate
from mbexport.cli import main
from mbexport.parity.report import Fault
from tests.checkpoints import ENCODER, EXAMPLE, edit_config, save_checkpoint, torch_model, torch_output
from tests.inputs import allowed_error, error, padded_batch
from tests.interop.test_interop import ROOT, with_tokenizer

pytestmark = pytest.mark.interop
OPTIMUM = ROOT / ".venv-optimum" / "bin" / "optimum-cli"
LENGTH = 300
TASKS = {
    "ModernBertForSequenceClassification": "text-classification",
    "ModernBertForTokenClassification": "token-classification",
    "ModernBertForMaskedLM": "fill-mask",
    ENCODER: "feature-extraction",
}


def exported(checkpoint: Path, output: Path, task: str = "text-classification", *options: str) -> Path:
    command = [str(OPTIMUM), "export", "onnx", "--model", str(checkpoint), "--task", task, *options, str(output)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return output


def faults(subject: Path, checkpoint: Path) -> tuple[Fault, ...]:
    report = validate(subject, checkpoint=checkpoint, max_length=LENGTH)
    (graph,) = report.graphs
    assert not report.passed
    assert graph.diagnosis is not None
    return graph.diagnosis.faults


@pytest.mark.parametrize("architecture", TASKS)
def test_a_right_export_passes(architecture: str, tmp_path: Path) -> None:
    checkpoint = with_tokenizer(tmp_path / "checkpoint", architecture=architecture, num_labels=5)
    theirs = exported(checkpoint, tmp_path / "theirs", TASKS[architecture])
    report = validate(theirs, checkpoint=checkpoint, max_length=LENGTH)
    assert report.passed
    assert [graph.file for graph in report.graphs] == ["model.onnx"]
    export_onnx(checkpoint, tmp_path / "bundle")
    assert validate(tmp_path / "bundle", against=theirs, max_length=LENGTH).passed
    assert validate(theirs, against=tmp_path / "bundle", max_length=LENGTH).passed


def test_the_verdict_is_what_a_comparison_by_hand_finds(tmp_path: Path) -> None:
    """The trained example: every length and padding, by the tests' own means."""
    import onnxruntime

    theirs = exported(EXAMPLE, tmp_path / "theirs")
    session = onnxruntime.InferenceSession(str(theirs / "model.onnx"))
    model = torch_model(EXAMPLE)
    for length in (1, 2, 63, 64, 65, 66, 128, 257, 300):
        ids, mask = padded_batch(length, 5000)
        expected = torch_output(model, ids, mask)
        found = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        assert error(found, expected, mask) <= allowed_error(expected)
    result = CliRunner().invoke(main, ["validate", str(theirs), "--checkpoint", str(EXAMPLE), "--max-length", "300"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"PASSED: 1 graph of {theirs} against PyTorch")


def test_its_half_precision_is_measured_by_pytorch_own(tmp_path: Path) -> None:
    theirs = exported(EXAMPLE, tmp_path / "theirs", "text-classification", "--dtype", "fp16")
    report = validate(theirs, checkpoint=EXAMPLE, max_length=LENGTH)
    (graph,) = report.graphs
    assert (graph.precision, report.passed) == ("fp16", True)
    assert graph.ratio is not None
    assert 0.1 < graph.ratio <= 2


IGNORED: dict[str, tuple[dict[str, Any], str, str]] = {
    "another base of local layers": (
        {"rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 40000.0},
        }},
        "theta", "rope_parameters, which transformers before version 5 does not read",
    ),
    "every second layer global": (
        {"layer_types": ["full_attention", "sliding_attention"] * 2}, "layer pattern", "transformers before version 5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IGNORED)
def test_settings_that_its_transformers_does_not_read_are_named(name: str, tmp_path: Path) -> None:
    settings, cause, words = IGNORED[name]
    checkpoint = with_tokenizer(tmp_path / "checkpoint", **settings)
    whole, *stages = faults(exported(checkpoint, tmp_path / "theirs"), checkpoint)
    assert {fault.cause for fault in (whole, *stages)} == {cause}
    assert words in whole.explanation
    assert {fault.kind for fault in stages} <= {"local attention", "global attention"}


def widen(model: onnx.ModelProto) -> None:
    """The one constant that a local layer's distances are compared with, 64 tokens, by one."""
    compared = [node for node in model.graph.node if node.op_type == "LessOrEqual"]
    makers = {name: node for node in model.graph.node for name in node.output}
    values = [
        makers[name].attribute[0] for node in compared for name in node.input if makers[name].op_type == "Constant"
    ]
    (window,) = [value for value in values if numpy_helper.to_array(value.t).tolist() == 64]
    window.t.CopyFrom(numpy_helper.from_array(np.array(65, np.int64)))


def ignore_the_mask(model: onnx.ModelProto) -> None:
    """Every place counts as a real token, for attention and pooling."""
    ones = [
        onnx.helper.make_node("Equal", ["attention_mask", "attention_mask"], ["all_places"]),
        onnx.helper.make_node("Cast", ["all_places"], ["every_place"], to=onnx.TensorProto.INT64),
    ]
    for node in model.graph.node:
        node.input[:] = ["every_place" if name == "attention_mask" else name for name in node.input]
    for node in reversed(ones):
        model.graph.node.insert(0, node)


@pytest.mark.parametrize(("tamper", "cause"), [(widen, "window"), (ignore_the_mask, "mask dropped")])
def test_a_tampered_export_fails_with_the_cause(tamper: Any, cause: str, tmp_path: Path) -> None:
    checkpoint = with_tokenizer(tmp_path / "checkpoint", classifier_pooling="mean")
    theirs = exported(checkpoint, tmp_path / "theirs")
    model = onnx.load(theirs / "model.onnx")
    tamper(model)
    onnx.save(model, theirs / "model.onnx")
    found = faults(theirs, checkpoint)
    assert found[0].cause == cause
    if cause == "window":
        (window,) = found
        assert window.stages == ("layers.1.attn", "layers.2.attn")  # the local layers
        assert "65 tokens to either side" in window.explanation
    else:
        assert {stage for fault in found for stage in fault.stages} >= {f"layers.{n}.attn" for n in range(4)}
    result = CliRunner().invoke(
        main, ["validate", str(theirs), "--checkpoint", str(checkpoint), "--max-length", "300", "--json"]
    )
    assert result.exit_code == 1
    assert json.loads(result.stdout)["graphs"][0]["diagnosis"]["faults"][0]["cause"] == cause


def test_a_fault_is_found_behind_its_optimizations(tmp_path: Path) -> None:
    """With --optimize O2 sums and norms are one operator; here of an export with another window."""
    checkpoint = with_tokenizer(tmp_path / "checkpoint")
    right = exported(checkpoint, tmp_path / "right", "text-classification", "--optimize", "O2")
    assert "SkipLayerNormalization" in {node.op_type for node in onnx.load(right / "model.onnx").graph.node}
    assert validate(right, checkpoint=checkpoint, max_length=LENGTH, bisect=True).passed
    edit_config(checkpoint, lambda config: config.update(local_attention=126))
    narrow = exported(checkpoint, tmp_path / "narrow", "text-classification", "--optimize", "O2")
    edit_config(checkpoint, lambda config: config.update(local_attention=128))
    (window,) = faults(narrow, checkpoint)
    assert (window.cause, window.stages) == ("window", ("layers.1.attn", "layers.2.attn"))


def test_other_weights_fail_without_a_cause(tmp_path: Path) -> None:
    """The control: another seed's export of the same shape."""
    checkpoint = with_tokenizer(tmp_path / "checkpoint")
    other = save_checkpoint(tmp_path / "other", seed=1, vocab_size=5000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, other)
    report = validate(exported(other, tmp_path / "theirs"), checkpoint=checkpoint, max_length=LENGTH)
    (graph,) = report.graphs
    assert graph.diagnosis is not None
    assert (graph.passed, graph.diagnosis.faults) == (False, ())
    assert "every input fails" in graph.diagnosis.conclusion
