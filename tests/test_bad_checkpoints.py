"""Every kind of bad checkpoint: one line, exit code 2, nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from mbexport.cli import main
from tests.checkpoints import ENCODER, edit_config, edit_tensors, save_checkpoint


def run_onnx(checkpoint: Path, bundle: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["onnx", str(checkpoint), "-o", str(bundle), *options])


def assert_refused(result: Result, *messages: str) -> None:
    lines = result.stderr.splitlines()
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(lines) == 1
    assert lines[0].startswith("mbexport: error: ")
    for message in messages:
        assert message in lines[0]


def not_a_directory(checkpoint: Path) -> None:
    for path in checkpoint.iterdir():
        path.unlink()
    checkpoint.rmdir()
    checkpoint.write_text("x")


def truncate(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_into_the_header(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def pickle_only(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")


def without(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: edit_tensors(checkpoint, lambda t: {n: v for n, v in t.items() if n != name})


def with_tensor(name: str, tensor: torch.Tensor) -> Callable[[Path], None]:
    return lambda checkpoint: edit_tensors(checkpoint, lambda t: t | {name: tensor})


def with_value(value: float) -> Callable[[Path], None]:
    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.layers.2.mlp.Wi.weight"][3, 5] = value
        return tensors

    return lambda checkpoint: edit_tensors(checkpoint, spoil)


def missing_shard(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    index = {"weight_map": {"classifier.weight": "model-00001-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_elsewhere(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../x.safetensors"}}))


WIDE = torch.zeros(3, 65)
BAD: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a file": (not_a_directory, ("is a file", "expected a directory")),
    "no config": (lambda c: (c / "config.json").unlink(), ("no config.json",)),
    "config is no JSON": (lambda c: (c / "config.json").write_text("{"), ("config.json is not valid JSON",)),
    "config is a list": (lambda c: (c / "config.json").write_text("[]"), ("JSON list, expected an object",)),
    "another model": (lambda c: edit_config(c, lambda x: x.update(model_type="bert")), ("model_type is 'bert'",)),
    "a head not supported": (
        lambda c: edit_config(c, lambda x: x.update(architectures=["ModernBertDecoderModel"])),
        ("ModernBertDecoderModel", "supported: ModernBertModel"),
    ),
    "no weights": (lambda c: (c / "model.safetensors").unlink(), ("no model.safetensors",)),
    "a pickle": (pickle_only, ("pytorch_model.bin", "never opened", "save_pretrained")),
    "weights cut short": (truncate, ("model.safetensors", "truncated or damaged")),
    "header cut short": (cut_into_the_header, ("model.safetensors", "truncated or damaged")),
    "tensor missing": (without("model.final_norm.weight"), ("1 missing: final_norm.weight",)),
    "tensor too many": (with_tensor("extra.weight", torch.zeros(3)), ("1 unexpected: extra.weight",)),
    "tensor of another shape": (
        with_tensor("classifier.weight", WIDE),
        ("of another shape: classifier.weight [3, 65] instead of [3, 64]",),
    ),
    "tensor of integers": (
        with_tensor("classifier.bias", torch.zeros(3, dtype=torch.int32)),
        ("classifier.bias I32", "F32, F16, BF16"),
    ),
    "NaN": (with_value(float("nan")), ("layers.2.mlp.Wi.weight holds NaN or infinity",)),
    "infinity": (with_value(float("-inf")), ("layers.2.mlp.Wi.weight holds NaN or infinity",)),
    "a shard missing": (missing_shard, ("names model-00001-of-00002.safetensors, which is missing",)),
    "a shard elsewhere": (shard_elsewhere, ("'../x.safetensors', which lies outside",)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoint(name: str, tmp_path: Path) -> None:
    spoil, messages = BAD[name]
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    spoil(checkpoint)
    before = sorted(tmp_path.iterdir())
    assert_refused(run_onnx(checkpoint, tmp_path / "bundle"), *messages)
    assert sorted(tmp_path.iterdir()) == before  # no bundle, no temporary directory


def test_missing_directory(tmp_path: Path) -> None:
    assert_refused(run_onnx(tmp_path / "none", tmp_path / "bundle"), "does not exist")


def test_encoder_with_a_head_left_in_its_weights(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    edit_config(checkpoint, lambda config: config.update(architectures=[ENCODER]))
    assert_refused(run_onnx(checkpoint, tmp_path / "bundle"), "unexpected", "classifier.weight")


def test_no_tokenizer_is_said_and_export_works(tiny: Path, tmp_path: Path) -> None:
    result = run_onnx(tiny, tmp_path / "bundle")
    assert result.exit_code == 0
    assert "tokenizer.json" in result.stderr
    assert (tmp_path / "bundle" / "onnx" / "model_ort.onnx").is_file()
    predicted = CliRunner().invoke(main, ["predict", str(tmp_path / "bundle"), "text"])
    assert_refused(predicted, "tokenizer.json is missing")


def test_existing_target(tiny: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    assert run_onnx(tiny, bundle).exit_code == 0
    (bundle / "mark").write_text("old")
    assert_refused(run_onnx(tiny, bundle), "exists", "--force")
    assert (bundle / "mark").is_file()
    assert run_onnx(tiny, bundle, "--force").exit_code == 0
    assert not (bundle / "mark").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("kind", ["directory of other files", "file", "link"])
def test_force_replaces_bundles_only(kind: str, tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("precious")
    else:
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "precious").write_text("x")
        target.symlink_to(tmp_path / "real") if kind == "link" else (tmp_path / "real").rename(target)
    assert_refused(run_onnx(tiny, target, "--force"), "is no bundle")
    assert target.read_text() == "precious" if kind == "file" else (target / "precious").is_file()


def test_failed_export_leaves_the_previous_bundle(tiny: Path, tmp_path: Path) -> None:
    assert run_onnx(tiny, tmp_path / "bundle").exit_code == 0
    kept = (tmp_path / "bundle" / "mbexport.json").read_bytes()
    spoiled = save_checkpoint(tmp_path / "spoiled", seed=1)
    with_value(float("nan"))(spoiled)
    assert_refused(run_onnx(spoiled, tmp_path / "bundle", "--force"), "NaN")
    assert (tmp_path / "bundle" / "mbexport.json").read_bytes() == kept


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a place that nobody can write to")
def test_unwritable_target(tiny: Path) -> None:
    assert_refused(run_onnx(tiny, Path("/proc/bundle")), "/proc/bundle cannot be written", "nothing was left")


def test_target_below_a_file(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert_refused(run_onnx(tiny, tmp_path / "file" / "bundle"), "cannot be written: File exists")


@pytest.mark.skipif(os.name != "posix", reason="limits file sizes through the operating system")
def test_write_that_fails_half_way(tiny: Path, tmp_path: Path) -> None:
    """The system stops a write in the middle of the weights, as a full disk does."""
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "from mbexport.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, "onnx", str(tiny), "-o", str(tmp_path / "bundle")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "cannot be written: File too large" in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("mbexport: error")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_disk_without_room(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mbexport.bundle import write

    monkeypatch.setattr(write, "SPARE_BYTES", 2**60)
    assert_refused(run_onnx(tiny, tmp_path / "bundle"), "the disk has", "MiB left")
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = run_onnx(tmp_path / "none", tmp_path / "bundle", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "CheckpointError" in result.stderr
