"""sentence-transformers pipelines against sentence-transformers itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from mbexport import export_onnx
from mbexport.cli import main
from mbexport.errors import CheckpointError, InputError
from mbexport.runtime import load
from tests.checkpoints import ENCODER, EXAMPLE, save_checkpoint
from tests.inputs import GRAPHS, allowed_error, error, padded_batch

HIDDEN = 64
TEXTS = ["The bank raised its rate.", "", "naïve 東京 🎉", "The striker scored twice. " * 30]


def save_pipeline(directory: Path, *modules: Any, **settings: Any) -> Path:
    """A random encoder followed by modules, as sentence-transformers saves it."""
    encoder = save_checkpoint(directory / "encoder", architecture=ENCODER, vocab_size=5000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, encoder)
    torch.manual_seed(3)
    SentenceTransformer(modules=[Transformer(str(encoder)), *modules], device="cpu", **settings).save(
        str(directory / "pipeline")
    )
    return directory / "pipeline"


def pooling(mode: str) -> Pooling:
    return Pooling(HIDDEN, pooling_mode=mode)


PIPELINES: dict[str, Callable[[], list[Any]]] = {
    **{
        mode: (lambda mode=mode: [pooling(mode)])
        for mode in ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    },
    "normalized": lambda: [pooling("mean"), Normalize()],
    "dense": lambda: [pooling("mean"), Dense(HIDDEN, 24), Normalize()],
    "dense without bias or activation": lambda: [
        pooling("cls"),
        Dense(HIDDEN, 24, bias=False, activation_function=torch.nn.Identity()),
    ],
    "normalized twice": lambda: [pooling("max"), Normalize(), Dense(HIDDEN, 24), Normalize()],
    "two dense layers": lambda: [
        pooling("cls"),
        Dense(HIDDEN, 24, activation_function=torch.nn.GELU()),
        Dense(24, 8, activation_function=torch.nn.ReLU()),
    ],
}


def run(bundle: Path, graph: str, output: str, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(bundle / graph))
    return session.run([output], {"input_ids": ids, "attention_mask": mask})[0]


def reference(pipeline: Path, output: str, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    model = SentenceTransformer(str(pipeline), device="cpu", model_kwargs={"attn_implementation": "eager"})
    with torch.inference_mode():
        features = model.eval()({"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)})
    return features[output].numpy()


@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline_equals_sentence_transformers(
    name: str, tmp_path: Path, record_parity: Callable[[str, str, float], None]
) -> None:
    pipeline = save_pipeline(tmp_path, *PIPELINES[name]())
    export_onnx(pipeline, tmp_path / "bundle")
    for length in (1, 2, 66, 300):
        ids, mask = padded_batch(length, 5000)
        expected = reference(pipeline, "sentence_embedding", ids, mask)
        tokens = reference(pipeline, "token_embeddings", ids, mask)
        for graph in GRAPHS:
            found = run(tmp_path / "bundle", graph, "sentence_embedding", ids, mask)
            assert error(found, expected, mask) <= allowed_error(expected), (graph, length)
            record_parity("sentence embeddings", name, error(found, expected, mask) / float(np.ptp(expected)))
            found = run(tmp_path / "bundle", graph, "token_embeddings", ids, mask)
            assert error(found, tokens, mask) <= allowed_error(tokens), (graph, length)


def test_poolings_differ_from_one_another(tmp_path: Path) -> None:
    """The control: a pooling taken for another would be seen, in every kind of padding."""
    ids, mask = padded_batch(300, 5000)
    found = {}
    for name in ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", "normalized"):
        pipeline = save_pipeline(tmp_path / name, *PIPELINES[name]())
        export_onnx(pipeline, tmp_path / name / "bundle")
        found[name] = run(tmp_path / name / "bundle", GRAPHS[0], "sentence_embedding", ids, mask)
    names = sorted(found)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            assert np.abs(found[first] - found[second]).max(axis=1).min() > 1e-3, (first, second)


def test_embed_equals_encode_with_prompts_and_truncation(tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path, pooling("mean"), Normalize(), prompts={"query": "search for: ", "document": ""})
    export_onnx(pipeline, tmp_path / "bundle")
    theirs, ours = SentenceTransformer(str(pipeline), device="cpu"), load(tmp_path / "bundle")
    assert np.abs(ours.embed(TEXTS) - theirs.encode(TEXTS)).max() <= 1e-5
    queries = ours.embed(TEXTS, prompt_name="query")
    assert np.abs(queries - theirs.encode(TEXTS, prompt_name="query")).max() <= 1e-5
    assert np.abs(queries - ours.embed(TEXTS)).max() > 0.01
    cut = ours.embed(TEXTS, truncate_dim=16)
    expected = theirs.encode(TEXTS, truncate_dim=16, normalize_embeddings=True)
    assert np.abs(cut - expected).max() <= 1e-5
    assert np.linalg.norm(cut, axis=1) == pytest.approx(1, abs=1e-5)
    assert ours.embed([]).shape == (0, HIDDEN)
    with pytest.raises(InputError, match="no prompt 'passage'; the model has"):
        ours.embed(TEXTS, prompt_name="passage")
    for size in (0, -5, True, 2.5, "8"):
        with pytest.raises(InputError, match="truncate_dim is"):
            ours.embed(TEXTS, truncate_dim=size)  # type: ignore[arg-type]


def test_settings_of_the_model_are_its_defaults(tmp_path: Path) -> None:
    pipeline = save_pipeline(
        tmp_path, pooling("mean"), Normalize(),
        prompts={"query": "search for: "}, default_prompt_name="query", truncate_dim=8,
    )  # fmt: skip
    export_onnx(pipeline, tmp_path / "bundle")
    theirs = SentenceTransformer(str(pipeline), device="cpu").encode(TEXTS, normalize_embeddings=True)
    ours = load(tmp_path / "bundle").embed(TEXTS)
    assert ours.shape == (4, 8)
    assert np.abs(ours - theirs).max() <= 1e-5
    result = CliRunner().invoke(main, ["predict", str(tmp_path / "bundle"), "--json", TEXTS[0]])
    assert json.loads(result.stdout)["embedding"] == pytest.approx(ours[0].tolist(), abs=1e-5)


def test_late_interaction_models_have_vectors_of_tokens(tmp_path: Path) -> None:
    dense = Dense(HIDDEN, 16, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings")
    pipeline = save_pipeline(tmp_path, dense, prompts={"q": "search for: "}, default_prompt_name="q")
    export_onnx(pipeline, tmp_path / "bundle")
    ids, mask = padded_batch(129, 5000)
    expected = reference(pipeline, "token_embeddings", ids, mask)
    for graph in GRAPHS:
        found = run(tmp_path / "bundle", graph, "token_embeddings", ids, mask)
        assert found.shape == (4, 129, 16)
        assert error(found, expected, mask) <= allowed_error(expected)
    model = load(tmp_path / "bundle")
    theirs = SentenceTransformer(str(pipeline), device="cpu").encode(TEXTS, output_value="token_embeddings")
    for ours, expected in zip(model(TEXTS), theirs, strict=True):
        assert np.abs(ours - expected.numpy()).max() <= 1e-5
    with pytest.raises(InputError, match="no embeddings of texts"):
        model.embed(TEXTS)


@pytest.mark.parametrize("late_interaction", [False, True])
def test_validate(late_interaction: bool, tmp_path: Path) -> None:
    dense = Dense(HIDDEN, 16, module_input_name="token_embeddings")
    pipeline = save_pipeline(tmp_path, *([dense] if late_interaction else PIPELINES["dense"]()))
    export_onnx(pipeline, tmp_path / "bundle")
    command = ["validate", str(tmp_path / "bundle"), "--checkpoint", str(pipeline), "--max-length", "129"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    file = next(pipeline.glob("*_Dense/model.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # other weights than those exported
    file.write_bytes(data)
    changed = CliRunner().invoke(main, command)
    assert changed.exit_code == 2
    assert "exported from other weights" in changed.stderr


def test_cross_encoder_takes_pairs(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    checkpoint = save_checkpoint(tmp_path / "model", vocab_size=5000, num_labels=1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, checkpoint)
    theirs = CrossEncoder(str(checkpoint), device="cpu")
    theirs.save_pretrained(str(tmp_path / "saved"))
    manifest = export_onnx(tmp_path / "saved", tmp_path / "bundle")
    assert manifest.activation == "sigmoid"
    pairs = [("which bank", text) for text in TEXTS]
    expected = theirs.predict(pairs)
    found = [answer["score"] for answer in load(tmp_path / "bundle")(pairs)]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)
    result = CliRunner().invoke(main, ["predict", str(tmp_path / "bundle"), "--query", "which bank", "--json", *TEXTS])
    scores = [json.loads(line)["score"] for line in result.stdout.splitlines()]
    assert scores == pytest.approx(found, abs=1e-6)


def test_cross_encoder_with_a_function_of_its_own(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    checkpoint = save_checkpoint(tmp_path / "model", vocab_size=5000, num_labels=1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, checkpoint)
    theirs = CrossEncoder(str(checkpoint), device="cpu", activation_fn=torch.nn.Identity())
    theirs.save_pretrained(str(tmp_path / "saved"))
    export_onnx(tmp_path / "saved", tmp_path / "bundle")
    pairs = [("which bank", text) for text in TEXTS]
    found = [answer["score"] for answer in load(tmp_path / "bundle")(pairs)]
    assert found == pytest.approx(theirs.predict(pairs).tolist(), abs=1e-5)
    edit_json(tmp_path / "saved" / "config_sentence_transformers.json", default_prompt_name="q")
    with pytest.raises(CheckpointError, match="default_prompt_name is 'q'"):
        export_onnx(tmp_path / "saved", tmp_path / "other")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def add_module(pipeline: Path, kind: str, path: str = "9_New") -> None:
    modules = json.loads((pipeline / "modules.json").read_text())
    modules.append({"idx": 9, "name": "9", "path": path, "type": kind})
    (pipeline / "modules.json").write_text(json.dumps(modules))


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "two poolings at once": (
        lambda p: edit_json(p / "1_Pooling" / "config.json", pooling_mode=["cls", "mean"]),
        r"pooling \['cls', 'mean'\] is not supported",
    ),
    "two poolings, as older versions save them": (
        lambda p: (p / "1_Pooling" / "config.json").write_text(
            '{"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true}'
        ),
        r"pooling \['cls', 'max'\] is not supported",
    ),
    "prompts left out of the mean": (
        lambda p: edit_json(p / "1_Pooling" / "config.json", include_prompt=False),
        "include_prompt is False",
    ),
    "an unknown module": (lambda p: add_module(p, "x.models.LSTM"), r"the module x\.models\.LSTM is not supported"),
    "a folder elsewhere": (lambda p: add_module(p, "x.Normalize", "../x"), r"'\.\./x', which lies elsewhere"),
    "an activation": (
        lambda p: edit_json(p / "2_Dense" / "config.json", activation_function="my.Function"),
        r"activation_function is 'my\.Function'",
    ),
    "sizes that do not follow": (
        lambda p: edit_json(p / "2_Dense" / "config.json", in_features=65),
        "in_features is 65, expected 64",
    ),
    "no weights": (lambda p: (p / "2_Dense" / "model.safetensors").unlink(), r"2_Dense/model\.safetensors is missing"),
    "other weights": (
        lambda p: edit_json(p / "2_Dense" / "config.json", out_features=25),
        r"2_Dense\.linear\.weight \[24, 64\] instead of \[25, 64\]",
    ),
    "lower case": (
        lambda p: edit_json(p / "sentence_bert_config.json", do_lower_case=True),
        "do_lower_case is True",
    ),
    "no list of modules": (lambda p: (p / "modules.json").write_text("{}"), r"modules\.json is no list of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    spoil, message = REFUSED[name]
    pipeline = save_pipeline(tmp_path, *PIPELINES["dense"]())
    spoil(pipeline)
    with pytest.raises(CheckpointError, match=message):
        export_onnx(pipeline, tmp_path / "bundle")


def test_older_names_of_poolings(tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path, pooling("mean"))
    (pipeline / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 64, "pooling_mode_mean_tokens": false, "pooling_mode_max_tokens": true}'
    )
    (pipeline / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": false}')
    manifest = export_onnx(pipeline, tmp_path / "bundle")
    assert (manifest.pooling, manifest.max_length) == ("max", 20)
