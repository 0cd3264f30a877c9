"""Bundles of every task for tests of `mbexport package`, and what a request to each of them holds."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mbexport import export_onnx
from tests.checkpoints import ENCODER, EXAMPLE, save_checkpoint

LONG = "The striker scored twice. " * 40
TEXTS = ["The bank raised its rate on Thursday.", "", "naïve 東京 🎉", LONG, "The film won.", "A [MASK] text."]
MASKED = ["The [MASK] raised its [MASK].", f"[MASK] {LONG}", "naïve 東京 [MASK]"]
QUESTIONS = [["Who won?", "The striker won."], ["Where?", LONG], ["Who?", "naïve 東京 🎉"]]
CHOICES = [["The bank", ["won.", "lost."]], ["naïve", ["東京", "a film", LONG]], ["Who", ["won?", "lost?"]]]


@dataclass(frozen=True)
class Task:
    """A checkpoint's settings, items as the runtime takes them, and the names of a request's inputs."""

    config: dict[str, Any]
    items: list[Any]
    second: str | None = None
    parameters: dict[str, Any] | None = None


TASKS = {
    "classifier": Task({"num_labels": 3}, TEXTS),
    "reranker": Task({"num_labels": 1}, [["Who won?", text] for text in TEXTS], "PAIR"),
    "entities": Task({"architecture": "ModernBertForTokenClassification", "num_labels": 5}, TEXTS),
    "spans": Task({"architecture": "ModernBertForQuestionAnswering", "num_labels": 2}, QUESTIONS, "PAIR"),
    "choices": Task({"architecture": "ModernBertForMultipleChoice"}, CHOICES, "CHOICES"),
    "masks": Task({"architecture": "ModernBertForMaskedLM"}, MASKED),
    "encoder": Task({"architecture": ENCODER}, TEXTS),
    "sentences": Task({}, TEXTS, parameters={"prompt_name": "query", "truncate_dim": 16}),
    "late": Task({}, TEXTS),
}


def export_task(name: str, directory: Path) -> Path:
    """The bundle of a small random model with the example's tokenizer."""
    if name in ("sentences", "late"):
        checkpoint = _save_pipeline(directory / "checkpoint", late=name == "late")
    else:
        config = {"vocab_size": 5000, "num_hidden_layers": 2, **TASKS[name].config}
        checkpoint = _with_tokenizer(save_checkpoint(directory / "checkpoint", **config))
    export_onnx(checkpoint, directory / "bundle")
    return directory / "bundle"


def _save_pipeline(directory: Path, *, late: bool) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    encoder = save_checkpoint(directory / "encoder", architecture=ENCODER, vocab_size=5000, num_hidden_layers=2)
    torch.manual_seed(3)
    head = [Dense(64, 16, module_input_name="token_embeddings")] if late else [Pooling(64, "mean"), Normalize()]
    modules = [Transformer(str(_with_tokenizer(encoder))), *head]
    pipeline = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "search for: "})
    pipeline.save(str(directory / "pipeline"))
    return directory / "pipeline"


def _with_tokenizer(checkpoint: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, checkpoint)
    return checkpoint


def inputs_of(task: Task, items: list[Any]) -> dict[str, list[Any]]:
    """Rows of each input of one request, as bytes."""
    if task.second is None:
        return {"TEXT": [[item.encode()] for item in items]}
    seconds = [[part.encode() for part in (s if isinstance(s, list) else [s])] for _, s in items]
    return {"TEXT": [[item[0].encode()] for item in items], task.second: seconds}


def expected(model: Any, task: Task, items: list[Any]) -> list[Any]:
    """What the runtime answers to the items, with the request's parameters."""
    prepared = model.prepare(items, **(task.parameters or {}))
    answers = dict(model.answers(prepared))
    return [answers[number] for number in range(len(items))]


def given(outputs: dict[str, np.ndarray]) -> list[Any]:
    """What a response's outputs say, as the runtime's answers."""
    if "ANSWER" in outputs:
        return [json.loads(row[0]) for row in outputs["ANSWER"]]
    if "EMBEDDING" in outputs:
        return list(outputs["EMBEDDING"])
    for row, (length,) in zip(outputs["TOKEN_EMBEDDINGS"], outputs["TOKENS"], strict=True):
        assert not row[length:].any()
    pairs = zip(outputs["TOKEN_EMBEDDINGS"], outputs["TOKENS"], strict=True)
    return [row[:length] for row, (length,) in pairs]


def assert_same(found: Any, wanted: Any) -> None:
    """Answers are the same but for rounding: a text may run beside others."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert_same(found[key], value)
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for ours, theirs in zip(found, wanted, strict=True):
            assert_same(ours, theirs)
    elif isinstance(wanted, np.ndarray):
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 2e-5
    elif isinstance(wanted, float):
        assert abs(found - wanted) <= 2e-5
    else:
        assert found == wanted
