"""Full and read-only disks: small ones in memory, in a mount namespace of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")  # which makes the checkpoints
ROOT = Path(__file__).parents[2]
CHANGING = {"int8", "trt", "prepack", "replace"}
READ_ONLY = "mbexport: error: bundle cannot be written: Read-only file system"
NAMESPACE = ["unshare", "--map-root-user", "--mount"]


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not can_mount(), reason="no mount namespace may be made here")


def disks(place: Path, *scenarios: str) -> dict[str, Any]:
    command = [*NAMESPACE, sys.executable, "-m", "tests.breaking.disks", str(place), *scenarios]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert result.stdout, result.stderr[-2000:]
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def check(summary: dict[str, Any]) -> None:
    assert summary["faults"] == []
    for name, (code, said) in summary["read-only"].items():
        if name in CHANGING:
            assert [line.partition(";")[0] for line in said] == [READ_ONLY]
        assert code == (2 if name in CHANGING else 0), (name, said)


def test_a_full_disk_and_one_that_is_read_only_cost_no_bundle(tmp_path: Path) -> None:
    summary = disks(tmp_path, "replace", "prepack", "predict")
    check(summary)
    assert summary["read-only"].keys() == {"replace", "prepack", "predict"}
    assert summary["refused"]["replace"] >= 4


@pytest.mark.slow
def test_every_command_on_a_full_disk(tmp_path: Path) -> None:
    summary = disks(tmp_path)
    check(summary)
    assert summary["read-only"].keys() == {*CHANGING, "validate", "predict", "inspect"}
    assert any("not recorded" in line for line in summary["read-only"]["validate"][1])
    refused = {name for name, count in summary["refused"].items() if count}
    assert refused >= {"export", "replace", "int8", "trt", "validate", "prepack", "package", "bench"}
