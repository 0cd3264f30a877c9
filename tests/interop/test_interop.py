"""Bundles load unchanged in the tools people have; `make interop` makes those tools' environments."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbexport import export_onnx
from mbexport.runtime import load
from tests.checkpoints import ENCODER, EXAMPLE, save_checkpoint
from tests.inputs import padded_batch, run_graph

pytestmark = pytest.mark.interop
HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
PEER_PYTHON = ROOT / ".venv-optimum" / "bin" / "python"
NODE_FOLDER = ROOT / "build" / "node"
TEXTS = ["The bank raised its rate on Thursday.", "", "naïve 東京 🎉", "The striker scored twice. " * 40]
TOLERANCE = 2e-5

CLASSES = {
    "ModernBertForSequenceClassification": "ORTModelForSequenceClassification",
    "ModernBertForTokenClassification": "ORTModelForTokenClassification",
    "ModernBertForMaskedLM": "ORTModelForMaskedLM",
    "ModernBertModel": "ORTModelForFeatureExtraction",
}


def run(command: list[object], given: object = None) -> Any:
    """What a command prints as its last line of JSON."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [str(part) for part in command], input=json.dumps(given), capture_output=True, text=True, check=False,
        env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


def peer(*arguments: object, given: object = None) -> Any:
    return run([PEER_PYTHON, HERE / "peer.py", *arguments], given)


def with_tokenizer(directory: Path, **config: Any) -> Path:
    checkpoint = save_checkpoint(directory, vocab_size=5000, **config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, checkpoint)
    return checkpoint


def pytorch_outputs(checkpoint: Path) -> list[np.ndarray]:
    import torch
    from transformers import AutoTokenizer

    from tests.checkpoints import torch_model

    model, tokenizer = torch_model(checkpoint), AutoTokenizer.from_pretrained(EXAMPLE)
    with torch.inference_mode():
        return [model(**tokenizer(text, return_tensors="pt"))[0][0].numpy() for text in TEXTS]


@pytest.mark.parametrize("architecture", CLASSES)
def test_optimum(architecture: str, tmp_path: Path) -> None:
    checkpoint = with_tokenizer(tmp_path / "checkpoint", architecture=architecture, num_labels=5)
    export_onnx(checkpoint, tmp_path / "bundle")
    found = peer("optimum", tmp_path / "bundle", CLASSES[architecture], given=TEXTS)
    for ours, theirs in zip(found, pytorch_outputs(checkpoint), strict=True):
        assert np.abs(np.array(ours) - theirs).max() <= TOLERANCE * np.ptp(theirs)


def test_transformers_pipeline_over_optimum(example_bundle: Path) -> None:
    found = peer("pipeline", example_bundle, given=TEXTS)
    for theirs, ours in zip(found, load(example_bundle)(TEXTS), strict=True):
        assert theirs == {"label": ours["label"], "score": pytest.approx(ours["score"], abs=1e-5)}


def test_sentence_transformers_with_its_onnx_backend(tmp_path: Path) -> None:
    encoder = with_tokenizer(tmp_path / "encoder", architecture=ENCODER)
    peer("save-sentence-transformer", encoder, tmp_path / "pipeline")
    export_onnx(tmp_path / "pipeline", tmp_path / "bundle")
    theirs = np.array(peer("sentence-transformer", tmp_path / "bundle", given=TEXTS))
    assert np.abs(theirs - load(tmp_path / "bundle").embed(TEXTS)).max() <= 1e-5


def test_openvino(example_bundle: Path) -> None:
    ids, mask = padded_batch(300, 5000)
    inputs = {"input_ids": ids.tolist(), "attention_mask": mask.tolist()}
    found = np.array(peer("openvino", example_bundle, given=inputs))
    expected = run_graph(example_bundle, "onnx/model.onnx", ids, mask)
    assert np.abs(found - expected).max() <= TOLERANCE * np.ptp(expected)


def test_plain_onnxruntime(example_bundle: Path) -> None:
    script = ROOT / "examples" / "plain_onnxruntime.py"
    assert len(script.read_text().split('"""')[2].strip().splitlines()) <= 10
    result = subprocess.run(
        [sys.executable, script, example_bundle, TEXTS[0]], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == load(example_bundle)([TEXTS[0]])[0]["label"]


def test_transformers_js(example_bundle: Path, tmp_path: Path) -> None:
    encoder = with_tokenizer(tmp_path / "encoder", architecture=ENCODER)
    export_onnx(encoder, tmp_path / "bundle")
    script = NODE_FOLDER / "peer.mjs"  # beside the packages it imports
    shutil.copy(HERE / "peer.mjs", script)
    labels = run(["node", script, example_bundle.parent, example_bundle.name, "text-classification"], TEXTS)
    for theirs, ours in zip(labels, load(example_bundle)(TEXTS), strict=True):
        assert theirs == {"label": ours["label"], "score": pytest.approx(ours["score"], abs=1e-5)}
    vectors = run(["node", script, tmp_path, "bundle", "feature-extraction"], TEXTS)
    assert np.abs(np.array(vectors) - load(tmp_path / "bundle").embed(TEXTS)).max() <= 1e-4
