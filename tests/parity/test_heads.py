"""Every head against transformers' eager attention, and what the runtime answers with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

from mbexport import export_onnx
from mbexport.cli import main
from mbexport.errors import CheckpointError, InputError
from mbexport.runtime import load
from tests.checkpoints import EXAMPLE, edit_config, edit_tensors, save_checkpoint, torch_model
from tests.inputs import GRAPHS, allowed_error, error, padded_batch, run_graph

TOKENS, SPANS = "ModernBertForTokenClassification", "ModernBertForQuestionAnswering"
CHOICES, MASKED = "ModernBertForMultipleChoice", "ModernBertForMaskedLM"
VARIANTS: dict[str, dict[str, Any]] = {
    "token classification": {"architecture": TOKENS, "num_labels": 5},
    "question answering": {"architecture": SPANS, "num_labels": 2},
    "multiple choice, cls": {"architecture": CHOICES},
    "multiple choice, mean": {"architecture": CHOICES, "classifier_pooling": "mean"},
    "masked LM, tied": {"architecture": MASKED},
    "masked LM, tied, no bias": {"architecture": MASKED, "decoder_bias": False},
    "masked LM, untied": {"architecture": MASKED, "tie_word_embeddings": False},
    "masked LM, head bias": {"architecture": MASKED, "classifier_bias": True, "norm_bias": True},
}
SELECTING = "onnx/model_ort_selected.onnx"


def torch_outputs(model: Any, ids: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """The outputs in the order of the graph's."""
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    if type(model).__name__ == CHOICES:
        inputs = {name: value[:, None] for name, value in inputs.items()}
    with torch.inference_mode():
        output = model(**inputs)
    names = ("start_logits", "end_logits") if type(model).__name__ == SPANS else ("logits",)
    return [output[name].numpy() for name in names]


@pytest.mark.parametrize("name", VARIANTS)
def test_head_equals_pytorch(name: str, tmp_path: Path, record_parity: Callable[[str, str, float], None]) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", **VARIANTS[name])
    export_onnx(checkpoint, tmp_path / "bundle")
    model = torch_model(checkpoint)
    for length in (1, 2, 66, 129, 300):
        ids, mask = padded_batch(length, vocabulary=512)
        expected = torch_outputs(model, ids, mask)
        for graph in GRAPHS:
            session = onnxruntime.InferenceSession(str(tmp_path / "bundle" / graph))
            found = session.run(None, {"input_ids": ids, "attention_mask": mask})
            assert len(found) == len(expected)
            for ours, theirs in zip(found, expected, strict=True):
                # Outputs of tokens have a sequence axis: only real tokens count.
                wide = theirs[..., None] if theirs.shape == mask.shape and length > 1 else theirs
                off = error(ours.reshape(wide.shape), wide, mask)
                assert off <= allowed_error(theirs), (graph, length)
                if length > 2:
                    record_parity(name.split(",", maxsplit=1)[0], name, off / float(np.ptp(theirs)))


def test_another_pooling_of_choices_is_found(tmp_path: Path) -> None:
    """The control: the first position in the place of the first real token, as another head pools."""
    checkpoint = save_checkpoint(tmp_path / "checkpoint", architecture=CHOICES)
    export_onnx(checkpoint, tmp_path / "choices")
    expected = torch_outputs(torch_model(checkpoint), *padded_batch(300, vocabulary=512))[0]
    edit_config(
        checkpoint,
        lambda c: c.update(architectures=["ModernBertForSequenceClassification"], id2label={"0": "x"}, label2id=None),
    )
    export_onnx(checkpoint, tmp_path / "first-position")
    ids, mask = padded_batch(300, vocabulary=512)
    for graph in GRAPHS:
        differing = np.abs(run_graph(tmp_path / "first-position", graph, ids, mask) - expected)[:, 0]
        assert differing[0] <= allowed_error(expected)  # unpadded: no difference
        assert differing[2] > 3 * allowed_error(expected)  # padded on the left


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("masked")])
def test_selected_tokens_equal_all_tokens(name: str, tmp_path: Path) -> None:
    export_onnx(save_checkpoint(tmp_path / "checkpoint", **VARIANTS[name]), tmp_path / "bundle")
    ids, mask = padded_batch(150, vocabulary=512)
    everything = run_graph(tmp_path / "bundle", GRAPHS[1], ids, mask).reshape(-1, 512)
    places = np.array([0, 7, 149, 150, 322, 599])
    session = onnxruntime.InferenceSession(str(tmp_path / "bundle" / SELECTING))
    found = session.run(None, {"input_ids": ids, "attention_mask": mask, "positions": places})[0]
    assert found.shape == (6, 512)
    assert np.abs(found - everything[places]).max() <= 1e-5
    assert np.abs(found - everything[places + 1 - 2 * (places == 599)]).max() > 0.1  # the control: neighbours


def test_tied_decoder_is_stored_once(tmp_path: Path) -> None:
    sizes = {}
    for tied in (True, False):
        bundle = tmp_path / str(tied)
        export_onnx(
            save_checkpoint(tmp_path / f"{tied}-checkpoint", architecture=MASKED, tie_word_embeddings=tied), bundle
        )
        sizes[tied] = (bundle / "onnx" / "model.onnx_data").stat().st_size
        names = {t.name for t in onnx.load(bundle / GRAPHS[0], load_external_data=False).graph.initializer}
        assert ("decoder.weight" in names) is not tied
    assert sizes[False] - sizes[True] == 512 * 64 * 4


def test_tied_decoder_that_the_checkpoint_stores_again(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", architecture=MASKED)
    twin = "model.embeddings.tok_embeddings.weight"
    edit_tensors(checkpoint, lambda t: t | {"decoder.weight": t[twin].clone()})
    export_onnx(checkpoint, tmp_path / "bundle")
    edit_tensors(checkpoint, lambda t: t | {"decoder.weight": t[twin] + 1})
    with pytest.raises(CheckpointError, match=r"ties decoder\.weight .* but they differ"):
        export_onnx(checkpoint, tmp_path / "other")


@pytest.mark.parametrize("name", VARIANTS)
def test_validate(name: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", **VARIANTS[name])
    export_onnx(checkpoint, tmp_path / "bundle")
    command = ["validate", str(tmp_path / "bundle"), "--checkpoint", str(checkpoint), "--max-length", "257", "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert len(report["graphs"]) == (3 if name.startswith("masked") else 2)
    assert all(g["overall"]["agreement"] in (1.0, None) for g in report["graphs"])
    # The control: a graph of other weights.
    other = save_checkpoint(tmp_path / "other", seed=1, **VARIANTS[name])
    export_onnx(other, tmp_path / "other-bundle")
    shutil.copy(tmp_path / "other-bundle" / "onnx" / "model.onnx_data", tmp_path / "bundle" / "onnx")
    assert CliRunner().invoke(main, command).exit_code == 1


def bundle_with_tokenizer(tmp_path: Path, **config: Any) -> Path:
    """A random model of the example's vocabulary, with its tokenizer."""
    checkpoint = save_checkpoint(tmp_path / "checkpoint", vocab_size=5000, **config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, checkpoint)
    export_onnx(checkpoint, tmp_path / "bundle")
    return tmp_path / "bundle"


TEXT = "Ann met Bob in 東京 🎉 yesterday, said the bank."


def test_entities_carry_exact_offsets(tmp_path: Path) -> None:
    bundle = bundle_with_tokenizer(
        tmp_path, architecture=TOKENS, num_labels=5, id2label={0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
    )
    answers = load(bundle)([TEXT, "", TEXT * 20])
    assert answers[1] == []
    assert len(answers[0]) > 1  # a random model finds plenty
    for answer, text in zip(answers, (TEXT, "", TEXT * 20), strict=True):
        for entity in answer:
            assert text[entity["start"] : entity["end"]] == entity["word"] == entity["word"].strip()
            assert entity["entity_group"] in {"PER", "LOC"}
            assert 0 < entity["score"] <= 1
    predicted = CliRunner().invoke(main, ["predict", str(bundle), "--json", TEXT])
    assert json.loads(predicted.stdout)["entities"] == answers[0]


def test_spans_equal_an_exhaustive_search(tmp_path: Path) -> None:
    bundle = bundle_with_tokenizer(tmp_path, architecture=SPANS, num_labels=2)
    model = load(bundle)
    pair = ("Who met Bob?", TEXT)
    found = model([pair])[0]
    assert TEXT[found["start"] : found["end"]] == found["answer"]
    outputs = model.outputs([pair])[0]
    encoded = model._encoder.encode([pair])[0]
    tokens = [n for n, segment in enumerate(encoded.segments) if segment == 1]
    starts, ends = (
        np.exp(outputs[name][tokens]) / np.exp(outputs[name][tokens]).sum() for name in ("start_logits", "end_logits")
    )
    best = max(float(starts[i] * ends[j]) for i in range(len(tokens)) for j in range(i, len(tokens)))
    assert found["score"] == pytest.approx(best, rel=1e-5)
    assert model([("Who?", "")])[0]["answer"] == ""
    with pytest.raises(InputError, match="takes pairs"):
        model(["no context"])
    predicted = CliRunner().invoke(main, ["predict", str(bundle), "--question", pair[0], "--json", TEXT])
    assert json.loads(predicted.stdout) == {"text": list(pair), **found}


def test_choices(tmp_path: Path) -> None:
    bundle = bundle_with_tokenizer(tmp_path, architecture=CHOICES)
    model = load(bundle)
    items = [("Who won?", ["The home side.", "Nobody", "Bob"]), ("Why?", ["Because.", "No reason"])]
    answers = model(items)
    assert [len(answer["scores"]) for answer in answers] == [3, 2]
    for (_, choices), answer in zip(items, answers, strict=True):
        assert answer["label"] == choices[answer["choice"]]
        assert sum(answer["scores"]) == pytest.approx(1)
        assert answer["score"] == max(answer["scores"])
    assert model(items[:1])[0]["scores"] == pytest.approx(answers[0]["scores"], abs=1e-6)
    for wrong in (["text"], [("text", "one choice")], [("text", [])]):
        with pytest.raises(InputError, match="multiple choice takes"):
            model(wrong)
    predicted = CliRunner().invoke(main, ["predict", str(bundle), "--query", "Who won?", "--json", *items[0][1]])
    assert json.loads(predicted.stdout)["choice"] == answers[0]["choice"]


def test_masks_are_filled_as_transformers_fills_them(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    bundle = bundle_with_tokenizer(tmp_path, architecture=MASKED)
    model = load(bundle)
    texts = ["The [MASK] said the [MASK].", "[MASK] won.", "A longer text about the [MASK] of the bank." * 3]
    answers = model(texts)
    assert [len(answer) for answer in answers] == [2, 1, 3]
    reference, tokenizer = torch_model(tmp_path / "checkpoint"), AutoTokenizer.from_pretrained(EXAMPLE)
    for text, answer in zip(texts, answers, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        logits = reference(**inputs).logits[0][inputs["input_ids"][0] == tokenizer.mask_token_id]
        top = logits.softmax(-1).topk(5)
        for tokens, numbers, scores in zip(answer, top.indices.tolist(), top.values.tolist(), strict=True):
            assert [token["token"] for token in tokens] == numbers
            assert [token["score"] for token in tokens] == pytest.approx(scores, rel=1e-4)
            assert [token["token_str"] for token in tokens] == [tokenizer.decode([n]) for n in numbers]
    assert model.description.startswith("model_ort_selected.onnx")
    with pytest.raises(InputError, match=r"text 1 has no \[MASK\] in its first 2048 tokens"):
        model(["one [MASK]", "none"])
