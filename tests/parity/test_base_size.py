"""ModernBERT-base's own size, random weights, against transformers' eager attention."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mbexport import export_onnx
from mbexport.graph.fused import LONGEST_WITH_SCORES
from tests.checkpoints import edit_config, save_checkpoint, torch_model, torch_output
from tests.inputs import GRAPHS, SPECIAL_LENGTHS, allowed_error, error, padded_batch, run_graph

BASE: dict[str, Any] = {
    "vocab_size": 50_368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "max_position_embeddings": 8192,
    "num_labels": 4,
}
POOLINGS = ("cls", "mean")
MAX_NODES = 1000
MAX_PEAK_BYTES = 1.5e9


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("base") / "checkpoint", **BASE)


@pytest.fixture(scope="module")
def bundles(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("base-bundles")
    for pooling in POOLINGS:
        edit_config(checkpoint, lambda config, pooling=pooling: config.update(classifier_pooling=pooling))
        export_onnx(checkpoint, directory / pooling)
    return {pooling: directory / pooling for pooling in POOLINGS}


def compare(
    model: Any,
    bundles: dict[str, Path],
    ids: np.ndarray,
    mask: np.ndarray,
    scale: np.ndarray | None,
    poolings: Sequence[str] = POOLINGS,
) -> None:
    for pooling in poolings:
        model.config.classifier_pooling = pooling
        expected = torch_output(model, ids, mask)
        limit = allowed_error(expected if scale is None else scale)
        for graph in GRAPHS:
            found = error(run_graph(bundles[pooling], graph, ids, mask), expected, mask)
            assert found <= limit, (pooling, graph, ids.shape)


def test_lengths_to_2048_with_every_padding(checkpoint: Path, bundles: dict[str, Path]) -> None:
    model = torch_model(checkpoint)
    # Attention is what changes with the length: poolings take turns (small models have each at every length).
    for number, length in enumerate((*SPECIAL_LENGTHS, 512)):
        turn = POOLINGS[number % len(POOLINGS)]
        compare(model, bundles, *padded_batch(length, BASE["vocab_size"]), scale=None, poolings=[turn])
    for length, pooling in ((LONGEST_WITH_SCORES, "cls"), (LONGEST_WITH_SCORES + 1, "mean"), (2048, "mean")):
        compare(model, bundles, *padded_batch(length, BASE["vocab_size"]), scale=None, poolings=[pooling])


def test_long_text_without_any_padding(checkpoint: Path, bundles: dict[str, Path]) -> None:
    """The fused graph has a path of its own for it."""
    ids, mask = padded_batch(LONGEST_WITH_SCORES + 1, BASE["vocab_size"])
    compare(torch_model(checkpoint), bundles, ids[:1], mask[:1], scale=None, poolings=["mean"])


@pytest.mark.slow
def test_8192_tokens(checkpoint: Path, bundles: dict[str, Path]) -> None:
    """One text, padded in between; needs about 16 GB for PyTorch's eager attention."""
    model = torch_model(checkpoint)
    scale = torch_output(model, *padded_batch(256, BASE["vocab_size"]))
    ids, mask = padded_batch(8192, BASE["vocab_size"])
    compare(model, bundles, ids[3:], mask[3:], scale)


def test_portable_graph_is_small(bundles: dict[str, Path]) -> None:
    for graph in GRAPHS:
        model = onnx.load(bundles["cls"] / graph, load_external_data=False)
        assert len(model.graph.node) <= MAX_NODES


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_of_an_export(checkpoint: Path, tmp_path: Path) -> None:
    # Not ru_maxrss: a child's begins at what its parent had when it forked.
    script = (
        "import sys, mbexport; mbexport.export_onnx(sys.argv[1], sys.argv[2]); "
        "print(*(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    command = [sys.executable, "-c", script, str(checkpoint), str(tmp_path / "bundle")]
    name, kibibytes, _ = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert name == "VmHWM:"
    assert 0.2e9 < int(kibibytes) * 1024 < MAX_PEAK_BYTES, kibibytes
