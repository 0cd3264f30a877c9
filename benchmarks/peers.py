"""The graphs that other exporters make of a checkpoint, made once and kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.trainers import BpeTrainer

SMALL_TOKENIZER = Path("examples/news_topics/checkpoint")
VOCABULARY = 50_000  # pieces, as ModernBERT's own tokenizer has
TASK = "text-classification"


def base_checkpoint(directory: Path) -> Path:
    """A base-size checkpoint with random weights, and a tokenizer of ModernBERT's size."""
    if not (directory / "model.safetensors").exists():
        subprocess.run([sys.executable, "benchmarks/make_checkpoint.py", str(directory)], check=True)
    if not (directory / "tokenizer.json").exists():
        write_tokenizer(directory)
    return directory


def write_tokenizer(directory: Path) -> None:
    """The example's tokenizer, trained anew on random words until it has VOCABULARY pieces."""
    tokenizer = Tokenizer.from_file(str(SMALL_TOKENIZER / "tokenizer.json"))
    special = tokenizer.get_added_tokens_decoder()
    letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, (60_000, 6), dtype=np.uint8)
    words = (" ".join(bytes(row).decode() for row in rows) for rows in np.split(letters, 600))
    names = [special[number].content for number in sorted(special)]  # the same ids as before
    tokenizer.train_from_iterator(words, BpeTrainer(vocab_size=VOCABULARY, special_tokens=names, show_progress=False))
    tokenizer.save(str(directory / "tokenizer.json"))
    shutil.copy(SMALL_TOKENIZER / "tokenizer_config.json", directory)


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
