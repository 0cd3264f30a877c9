"""The graphs that other exporters make of a checkpoint, made once and kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

TOKENIZER_FROM = Path("examples/news_topics/checkpoint")  # optimum and our runtime want one; its content is not timed
TASK = "text-classification"


def base_checkpoint(directory: Path) -> Path:
    """A base-size checkpoint with random weights, with a tokenizer."""
    if not (directory / "model.safetensors").exists():
        subprocess.run([sys.executable, "benchmarks/make_checkpoint.py", str(directory)], check=True)
    for file in TOKENIZER_FROM.glob("tokenizer*.json"):
        if not (directory / file.name).exists():
            shutil.copy(file, directory)
    return directory


def prepare(checkpoint: Path, optimum_cli: str, folder: Path) -> dict[str, Path]:
    """The ONNX file of each exporter by name, below ``folder``; those that are there are kept."""
    optimum = [optimum_cli, "export", "onnx", "--model", str(checkpoint), "--task", TASK]
    transformers = [sys.executable, "benchmarks/export_transformers.py", str(checkpoint)]
    commands = {
        "optimum": [*optimum, str(folder / "optimum")],
        "optimum O2": [*optimum, "--optimize", "O2", str(folder / "optimum O2")],
        "transformers": [*transformers, str(folder / "transformers")],
        "transformers fused": [*transformers, str(folder / "transformers fused"), "--fused"],
    }
    for name, command in commands.items():
        if not (folder / name / "done").exists():
            print(f"exporting: {name}", file=sys.stderr)
            shutil.rmtree(folder / name, ignore_errors=True)
            _run(command)
            (folder / name / "done").touch()
    return {name: folder / name / "model.onnx" for name in commands}


def _run(command: list[str]) -> None:
    """Run a command without a network; show what it said only if it fails."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
