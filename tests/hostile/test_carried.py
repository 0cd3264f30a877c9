"""What gets from a checkpoint into a bundle: files of known names that are what they say, and nothing by a link."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.checkpoints import ENCODER, EXAMPLE, save_checkpoint
from tests.hostile.bounded import run_bounded

PRIVATE = '{"key": "x"}'


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of an encoder and a pooling, with a tokenizer."""
    checkpoint = save_checkpoint(tmp_path_factory.mktemp("encoder") / "checkpoint", ENCODER, vocab_size=5000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, checkpoint)
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
        {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"},
    ]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    (checkpoint / "1_Pooling").mkdir()
    (checkpoint / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return checkpoint


@pytest.fixture
def checkpoint(encoder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoder, tmp_path / "checkpoint"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", PRIVATE),
        ("special_tokens_map.json", PRIVATE),
        ("added_tokens.json", PRIVATE),
        ("config_sentence_transformers.json", PRIVATE),
        ("tokenizer.json", PRIVATE),
        ("tokenizer.model", "secret"),
        ("1_Pooling/config.json", '{"pooling_mode_mean_tokens": true, "key": "x"}'),
    ],
)
def test_no_file_of_the_machine_is_carried_by_a_link(name: str, content: str, checkpoint: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(content)
    (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / name).symlink_to(os.path.relpath(secret, (checkpoint / name).parent))
    (outcome,) = run_bounded([["onnx", checkpoint, "-o", tmp_path / "bundle"]])
    assert outcome.code == 2
    assert f"{name} is a link to {secret}, outside of the checkpoint" in outcome.stderr
    assert not (tmp_path / "bundle").exists()


def test_of_folders_only_what_is_known_is_carried(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("x")
    folder = checkpoint / "1_Pooling"
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "link").symlink_to("/dev/zero")
    (folder / "inner").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe")
    (checkpoint / "2_Normalize").symlink_to(tmp_path / "elsewhere")
    (outcome,) = run_bounded([["onnx", checkpoint, "-o", tmp_path / "bundle"]])
    assert outcome.code == 0, outcome.stderr
    carried = {path.relative_to(tmp_path / "bundle").as_posix() for path in (tmp_path / "bundle").rglob("*")}
    assert {name for name in carried if name.startswith(("1_", "2_"))} == {
        "1_Pooling", "1_Pooling/config.json", "2_Normalize"
    }  # fmt: skip
    assert not any(path.is_symlink() for path in (tmp_path / "bundle").rglob("*"))


@pytest.mark.parametrize("how", ["in the cache", "from the cache"])
def test_the_hub_s_cache_is_taken(how: str, checkpoint: Path, tmp_path: Path) -> None:
    """A snapshot of links to blobs; and a folder of links into the cache, as earlier versions of the hub made it."""
    blobs = tmp_path / "hub" / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    snapshot = blobs.parent / "snapshots" / "main" if how == "in the cache" else tmp_path / "local"
    for number, file in enumerate(sorted(path for path in checkpoint.rglob("*") if path.is_file())):
        link = snapshot / file.relative_to(checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blobs / str(number))
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    (outcome,) = run_bounded([["onnx", snapshot, "-o", tmp_path / "bundle"]])
    assert outcome.code == 0, outcome.stderr
    assert json.loads((tmp_path / "bundle" / "1_Pooling" / "config.json").read_text())
    assert not any(path.is_symlink() for path in (tmp_path / "bundle").rglob("*"))
