"""``mbexport.runtime.load`` on real bundles."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mbexport import export_onnx
from mbexport.errors import BackendError, BundleError, InputError
from mbexport.runtime import TruncationWarning, load
from mbexport.runtime.backends.ort import OnnxRuntimeBackend
from mbexport.runtime.schedule import MOST_PADDING
from tests.checkpoints import ENCODER, EXAMPLE, copy_example, edit_config, save_checkpoint, torch_model

TEXTS = [
    "The striker scored twice in the final minutes.",
    "",
    "The bank raised its interest rate again on Thursday. " * 40,
    "Voters go to the polls in May.",
    "naïve café 東京 🎉",
    "The striker scored twice in the final minutes.",
]


def pytorch_logits(texts: Sequence[str]) -> np.ndarray:
    from transformers import AutoTokenizer

    model, tokenizer = torch_model(EXAMPLE), AutoTokenizer.from_pretrained(EXAMPLE)
    return np.stack([model(**tokenizer(text, return_tensors="pt")).logits[0].detach().numpy() for text in texts])


def test_answers_equal_pytorch_in_order(example_bundle: Path) -> None:
    model = load(example_bundle)
    expected = pytorch_logits(TEXTS)
    assert np.abs(model.logits(TEXTS) - expected).max() <= 2e-5 * (expected.max() - expected.min())
    probabilities = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    for answer, row in zip(model(TEXTS), probabilities, strict=True):
        assert answer["label"] == model.manifest.labels[row.argmax()]
        assert answer["score"] == pytest.approx(float(row.max()), abs=1e-5)
    assert model.description.startswith("model_ort.onnx on ONNX Runtime")


def recorded_masks(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The masks of all forward passes from now on."""
    masks: list[np.ndarray] = []
    real_run = OnnxRuntimeBackend.run

    def recording_run(self: OnnxRuntimeBackend, ids: np.ndarray, mask: np.ndarray, **rest: object) -> object:
        masks.append(mask)
        return real_run(self, ids, mask, **rest)

    monkeypatch.setattr(OnnxRuntimeBackend, "run", recording_run)
    return masks


def test_little_padding_is_computed(example_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = recorded_masks(monkeypatch)
    load(example_bundle)(TEXTS)
    assert sum(len(mask) for mask in masks) == len(TEXTS)
    assert len(masks) < len(TEXTS)
    assert all((mask.shape[1] - mask.sum(axis=1)).max() <= MOST_PADDING for mask in masks)


@pytest.mark.parametrize("share_cores", [True, False])
def test_texts_that_run_padded_or_side_by_side_get_their_own_answers(
    share_cores: bool, example_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{text} {'more ' * n}" for n in range(40) for text in TEXTS]
    model = load(example_bundle, threads=2, share_cores=share_cores)
    alone = np.concatenate([model.logits([text]) for text in texts])
    masks = recorded_masks(monkeypatch)
    together = model.logits(texts)
    assert any(not mask.all() for mask in masks)
    assert np.abs(together - alone).max() <= 2e-5 * (alone.max() - alone.min())
    assert np.abs(together - alone[::-1]).max() > 1  # the control: answers of other texts


def test_outputs_of_tokens_lose_the_padding(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", architecture=ENCODER, vocab_size=5000)
    shutil.copy(EXAMPLE / "tokenizer.json", checkpoint)
    export_onnx(checkpoint, tmp_path / "bundle")
    model = load(tmp_path / "bundle")
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 5000, length) for length in (7, 12, 20, 12)]
    together = model.outputs_of_tokens(ids)
    for own, found in zip(ids, together, strict=True):
        alone = model.outputs_of_tokens([own])[0]["last_hidden_state"]
        assert found["last_hidden_state"].shape == alone.shape == (len(own), 64)
        assert np.abs(found["last_hidden_state"] - alone).max() <= 1e-5


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([1, 2], "item 1 is no one-dimensional"),
        (np.ones(3, np.int32), "item 1 is no one-dimensional"),
        (np.ones((1, 3), np.int64), "item 1 is no one-dimensional"),
        (np.ones(0, np.int64), "item 1 has 0 tokens, expected 1 to 8192"),
        (np.ones(8193, np.int64), "item 1 has 8193 tokens"),
        (np.array([1, -100]), "item 1 holds the id -100; ids count from 0"),
    ],
)
def test_what_are_no_token_ids(item: object, message: str, example_bundle: Path) -> None:
    with pytest.raises(InputError, match=message):
        load(example_bundle).outputs_of_tokens([np.ones(4, np.int64), item])  # type: ignore[list-item]


def test_no_texts(example_bundle: Path) -> None:
    model = load(example_bundle)
    assert model([]) == []
    assert model.logits([]).shape == (0, 5)


@pytest.mark.parametrize(
    ("texts", "message"),
    [("one text", r"expected a list of texts: \[text\]"), (["fine", 3], "text 1 is a int"), (["\udcff"], "surrogate")],
)
def test_what_is_no_text(texts: object, message: str, example_bundle: Path) -> None:
    with pytest.raises(InputError, match=message):
        load(example_bundle)(texts)  # type: ignore[arg-type]


def test_one_model_serves_many_threads(example_bundle: Path) -> None:
    model = load(example_bundle, threads=1)
    alone = model.logits(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        for together in pool.map(model.logits, [TEXTS] * 24):
            assert (together == alone).all()


def test_truncation_is_warned_of_once_and_counted(tmp_path: Path) -> None:
    checkpoint = copy_example(tmp_path / "checkpoint")
    edit_config(checkpoint, lambda config: config.update(max_position_embeddings=16))
    export_onnx(checkpoint, tmp_path / "bundle")
    model = load(tmp_path / "bundle")
    with pytest.warns(TruncationWarning, match="1 of 2 texts had more than 16 tokens"):
        model(["long " * 30, "short"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(["long " * 30] * 2)
    assert model.truncated == 3


@pytest.mark.parametrize(
    ("config", "labels", "answer"),
    [
        ({"problem_type": "multi_label_classification"}, 3, {"label", "score", "scores"}),
        ({"problem_type": "regression"}, 1, {"label", "score"}),
        ({}, 1, {"label", "score"}),
    ],
)
def test_kinds_of_problems(config: dict[str, str], labels: int, answer: set[str], tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", vocab_size=5000, num_labels=labels, **config)
    shutil.copy(EXAMPLE / "tokenizer.json", checkpoint)
    export_onnx(checkpoint, tmp_path / "bundle")
    model = load(tmp_path / "bundle")
    logits = model.logits(["one text"])[0]
    found = model(["one text"])[0]
    assert set(found) == answer
    best = float(logits.max())
    expected = best if config.get("problem_type") == "regression" else 1 / (1 + np.exp(-best))
    assert found["score"] == pytest.approx(expected, abs=1e-6)


def test_bare_encoder_gives_vectors(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", architecture=ENCODER, vocab_size=5000)
    shutil.copy(EXAMPLE / "tokenizer.json", checkpoint)
    manifest = export_onnx(checkpoint, tmp_path / "bundle")
    assert any("mean over a text's tokens" in note for note in manifest.notes)
    model = load(tmp_path / "bundle")
    vectors = model.embed(TEXTS)
    assert (vectors.shape, vectors.dtype) == ((len(TEXTS), 64), np.float32)
    import torch
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(EXAMPLE / "tokenizer.json")).encode(TEXTS[0]).ids
    expected = torch_model(checkpoint)(torch.tensor([ids])).last_hidden_state[0].mean(dim=0).detach().numpy()
    assert np.abs(vectors[0] - expected).max() <= 1e-5
    assert (model(TEXTS)[0] == vectors[0]).all()
    with pytest.raises(InputError, match=r"embed\(\)"):
        model.logits(TEXTS)


def test_classifier_has_no_embeddings(example_bundle: Path) -> None:
    with pytest.raises(InputError, match="no embeddings"):
        load(example_bundle).embed(TEXTS)


def test_refused_choices(example_bundle: Path) -> None:
    with pytest.raises(InputError, match="device is 'cuda'"):
        load(example_bundle, device="cuda")
    with pytest.raises(BundleError, match="holds no int8 graph; it has fp32"):
        load(example_bundle, precision="int8")
    with pytest.raises(InputError, match="threads is 0"):
        load(example_bundle, threads=0)


@pytest.mark.parametrize("damage", ["cut", "gone", "no graph"])
def test_damaged_bundle_is_named_before_it_runs(damage: str, example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    data = bundle / "onnx" / "model.onnx_data"
    if damage == "cut":
        data.write_bytes(data.read_bytes()[:-4])
    elif damage == "gone":
        data.unlink()
    else:
        (bundle / "onnx" / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"onnx/model\.onnx"):
        load(bundle)


def test_what_onnx_runtime_refuses(example_bundle: Path, tmp_path: Path) -> None:
    backend = OnnxRuntimeBackend(example_bundle / "onnx" / "model_ort.onnx")
    with pytest.raises(BackendError, match="input of shape 1x3"):
        backend.run(np.array([[1, 2, 5000]]), np.ones((1, 3), np.int64))  # 5000 is outside the vocabulary
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"broken\.onnx cannot be loaded"):
        OnnxRuntimeBackend(tmp_path / "broken.onnx")


def test_any_iterable_of_texts_and_pairs_as_lists(example_bundle: Path) -> None:
    model = load(example_bundle)
    assert model(text for text in TEXTS) == model(TEXTS)
    assert model([["a question", "a context"]]) == model([("a question", "a context")])
    for wrong in (None, 5, {"text": 1}, b"text"):
        with pytest.raises(InputError, match="expected a list of texts"):
            model(wrong)  # type: ignore[arg-type]


def test_labels_that_do_not_fit_the_graph(example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    path = bundle / "mbexport.json"
    path.write_text(path.read_text().replace('"tech"', '"tech", "more"'))
    with pytest.raises(BundleError, match="the manifest has 6 labels"):
        load(bundle)


def test_prepared_items_are_answered_as_they_come_and_as_a_call_answers_them(example_bundle: Path) -> None:
    model = load(example_bundle)
    texts = ["Shares fell.", "The striker scored twice in the second half. " * 20, "A new phone."]
    prepared = model.prepare(texts)
    assert [item.item for item in prepared] == texts
    assert [item.tokens for item in prepared] == [len(part.ids) for item in prepared for part in item.parts]
    answers = list(model.answers(prepared))
    assert [number for number, _ in answers] != [0, 1, 2]  # the longest first
    assert [answer for _, answer in sorted(answers)] == model(texts)
    assert len({answer["label"] for _, answer in answers}) > 1


def test_check_runs_the_model(example_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(example_bundle)
    model.check()

    def lost(*_: object, **__: object) -> None:
        raise BackendError("the device is lost")

    monkeypatch.setattr(OnnxRuntimeBackend, "run", lost)
    with pytest.raises(BackendError, match="lost"):
        model.check()
