"""What is no number never is an answer: NaN and infinity out of graphs, extreme logits, ids without a row."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.service.process import Service
from mbexport import export_onnx, package
from mbexport.cli import main
from mbexport.errors import BackendError, BundleError, InputError, NotFiniteError
from mbexport.runtime import Batcher, Model, load
from mbexport.runtime.backends.ort import OnnxRuntimeBackend
from mbexport.runtime.heads import classification, normalized, pool, scores, shortened, top_tokens
from mbexport.runtime.spans import best_span
from mbexport.runtime.text import Encoded
from tests.checkpoints import ENCODER, edit_config, torch_model
from tests.gpu_standin import Machine, add_engine
from tests.overflowing import BAD_TEXT, BAD_TOKEN, PADDING, save_overflowing
from tests.triton_standin import Request, Server, TritonError

PATIENCE = 60.0
GOOD = [f"{start} {'more ' * n}" for n in (0, 3, 20, 40) for start in ("Shares fell.", "", "naïve 東京 🎉")]
TEXTS = [*GOOD[:5], BAD_TEXT, *GOOD[5:]]
BAD = 5  # the number of BAD_TEXT in TEXTS
MESSAGE = "gives {} with NaN or infinity"

Made = Callable[..., Path]


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The bundle of a model that overflows at a token, not to be changed."""
    made: dict[tuple[Any, ...], Path] = {}

    def bundle(token: int = BAD_TOKEN, **config: Any) -> Path:
        key = (token, *config.items())
        if key not in made:
            folder = tmp_path_factory.mktemp("overflowing")
            checkpoint = save_overflowing(folder / "checkpoint", token, **config)
            export_onnx(checkpoint, folder / "bundle", packed=True)
            made[key] = folder / "bundle"
        return made[key]

    return bundle


def own(bundle: Path, folder: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(bundle, folder / "own"))


def test_the_text_is_one_that_pytorch_has_no_numbers_for_either(bundle_of: Made) -> None:
    bundle = bundle_of()
    pytorch, encoder = torch_model(bundle.parent / "checkpoint"), load(bundle)._encoder
    for number, encoded in enumerate(encoder.encode(TEXTS)):
        with torch.inference_mode():
            logits = pytorch(torch.from_numpy(encoded.ids[None])).logits
        assert bool(torch.isfinite(logits).all()) is (number != BAD)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_text_without_numbers_is_named_by_every_method(threads: int, bundle_of: Made) -> None:
    model = load(bundle_of(), threads=threads)
    assert np.isfinite(model.logits(GOOD)).all()
    ids = [encoded.ids for encoded in model._encoder.encode(TEXTS)]
    message = f"text {BAD}: model_ort.onnx .*{MESSAGE.format('logits')}"
    for call in (model, model.logits, model.outputs, lambda _: model.outputs_of_tokens(ids)):
        with pytest.raises(NotFiniteError, match=message):
            call(TEXTS)
    assert issubclass(NotFiniteError, BackendError)


TASKS: dict[str, tuple[dict[str, Any], Callable[[str], Any], str]] = {
    "tokens": ({"architecture": "ModernBertForTokenClassification"}, str, "logits"),
    "answers": (
        {"architecture": "ModernBertForQuestionAnswering", "num_labels": 2},
        lambda text: ("who", text),
        "start_logits and end_logits",
    ),
    "choices": ({"architecture": "ModernBertForMultipleChoice"}, lambda text: ("who", [text]), "logits"),
    "masks": ({"architecture": "ModernBertForMaskedLM"}, lambda text: f"[MASK] {text}", "logits"),
    "vectors": ({"architecture": ENCODER}, str, "last_hidden_state"),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task(task: str, tmp_path: Path) -> None:
    config, item, outputs = TASKS[task]
    export_onnx(save_overflowing(tmp_path / "checkpoint", BAD_TOKEN, **config), tmp_path / "bundle")
    model = load(tmp_path / "bundle")
    assert len(model([item(text) for text in GOOD])) == len(GOOD)
    with pytest.raises(NotFiniteError, match=f"text {BAD}: .*{MESSAGE.format(outputs)}"):
        model([item(text) for text in TEXTS])
    if task == "vectors":
        with pytest.raises(NotFiniteError, match=f"text {BAD}: "):
            model.embed(TEXTS)


def test_all_others_were_answered_before_the_error(bundle_of: Made) -> None:
    model, found = load(bundle_of()), dict[int, Any]()
    with pytest.raises(NotFiniteError):
        found.update(model.answers(model.prepare(TEXTS)))
    assert found.keys() == set(range(len(TEXTS))) - {BAD}


def test_callers_of_a_batcher_beside_such_a_text_have_their_answers(bundle_of: Made) -> None:
    model = load(bundle_of())
    expected = model(GOOD)
    with Batcher(model, max_delay=0.05) as batcher:
        futures = [batcher.submit(text) for text in (*TEXTS, BAD_TEXT)]
        bad = [futures.pop(), futures.pop(BAD)]
        for future, wanted in zip(futures, expected, strict=True):
            assert future.result(PATIENCE)["score"] == pytest.approx(wanted["score"], abs=1e-5)
        for future in bad:
            with pytest.raises(NotFiniteError, match="text 0: "):
                future.result(PATIENCE)
        assert batcher.fault is None


@pytest.mark.parametrize("packed", [False, True])
def test_engines_give_the_same_and_a_packed_row_is_not_lost(
    packed: bool, bundle_of: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a packed row the one text makes NaN of all: each is computed by itself then."""
    Machine(monkeypatch)
    bundle = own(bundle_of(), tmp_path)
    add_engine(bundle, packed=packed)
    expected = load(bundle, device="cpu").logits(GOOD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load(bundle, device="cuda")
    found: dict[int, Any] = {}
    with pytest.raises(NotFiniteError, match=f"text {BAD}: a100-fp16-0.engine "):
        found.update(model._results([encoded.ids for encoded in model._encoder.encode(TEXTS)]))
    rows = np.stack([found[number]["logits"] for number in range(len(TEXTS)) if number != BAD])
    assert np.abs(rows - expected).max() <= 1e-5


def test_an_answer_does_not_depend_on_the_padding_beside_the_text(bundle_of: Made) -> None:
    """The token that rows are padded with is the one that overflows: no text holds it."""
    model = load(bundle_of(PADDING))
    alone = np.concatenate([model.logits([text]) for text in GOOD])
    assert np.isfinite(alone).all()
    rows: list[Any] = list(model._computed([encoded.ids for encoded in model._encoder.encode(GOOD)]))
    assert not all(np.isfinite(row["logits"]).all() for _, row in rows)  # the control: of rows as they come
    assert np.abs(model.logits(GOOD) - alone).max() <= 1e-5


def test_predict_prints_no_nan(bundle_of: Made, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(["fine"] * 300 + [BAD_TEXT, "fine"]), encoding="utf-8")
    result = CliRunner().invoke(main, ["predict", str(bundle_of()), "--json", "--file", str(file)])
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "behind the first 256 texts, text 44: " in result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 256
    assert all(json.loads(line, parse_constant=pytest.fail)["text"] == "fine" for line in lines)


def test_triton_answers_the_other_requests(bundle_of: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(bundle_of(), tmp_path / "repository")
    server, requests = Server(tmp_path / "repository", monkeypatch), [["fine"], ["fine", BAD_TEXT], [BAD_TEXT], ["b"]]
    first, second, third, last = server.execute(*(Request(TEXT=[[t.encode()] for t in texts]) for texts in requests))
    assert (second.code(), third.code()) == (TritonError.INTERNAL, TritonError.INTERNAL)
    assert second.message().startswith("text 1: modernbert_model on Triton gives logits with NaN")
    assert third.message().startswith("text 0: ")
    for answered in (first, last):
        assert json.loads(answered["ANSWER"][0][0])["label"]


def test_the_service_answers_the_other_requests(bundle_of: Made) -> None:
    with Service(bundle_of()) as service:
        service.until_ready(PATIENCE)
        status, found, headers = service.ask("POST", "/predict", {"inputs": ["fine", BAD_TEXT]})
        assert (status, found["error"]["type"]) == (500, "not_finite")
        assert found["error"]["message"].startswith("item 1: ")
        assert "retry-after" not in headers
        status, found, _ = service.ask("POST", "/predict", {"inputs": ["fine", ""]})
        assert (status, len(found["predictions"])) == (200, 2)
        assert service.ask("GET", "/health/ready")[0] == 200


class _Manifest:
    """What an answer is made by."""

    def __init__(self, activation: str, labels: int) -> None:
        self.activation, self.labels = activation, tuple("abcdefgh"[:labels])


LOGITS = [[1e30, -1e30, 0], [3.4e38, -3.4e38, 3.4e38], [-1e30, -1e30, -1e30], [89, 88.5, -600], [1e-45, 0, -1e-45]]


@pytest.mark.parametrize("row", LOGITS)
def test_scores_of_extreme_logits_are_pytorchs_in_float64(row: list[float]) -> None:
    logits = np.array(row, np.float32)
    exact = torch.from_numpy(logits).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for activation, expected in (
            ("softmax", exact.softmax(0)), ("sigmoid", exact.sigmoid()), ("none", exact),
        ):  # fmt: skip
            found = scores(logits, activation)
            assert np.isfinite(found).all()
            assert np.allclose(found, expected.numpy(), rtol=1e-12, atol=0)


def test_the_best_of_saturated_scores_is_that_of_the_logits() -> None:
    logits = np.array([50, 900, 100, -900], np.float32)
    assert scores(logits, "sigmoid")[:3].tolist() == [1, 1, 1]
    answer = classification(logits, _Manifest("sigmoid", 4))  # type: ignore[arg-type]
    assert (answer["label"], answer["score"], answer["scores"]["d"]) == ("b", 1.0, 0.0)
    tokens = top_tokens(np.array([0, 1e30, 3, 2, 4], np.float32), 4, str)
    assert [(token["token"], token["score"]) for token in tokens] == [(1, 1.0), (4, 0.0), (2, 0.0), (3, 0.0)]


def test_the_best_span_of_scores_that_are_all_zero_is_that_of_the_logits() -> None:
    """The likeliest start stands behind the likeliest end, all other probabilities are 0 in float64."""
    context = "a b c d"
    encoded = Encoded(
        np.arange(4), truncated=False, segments=(1,) * 4, words=(0, 1, 2, 3), offsets=((0, 1), (2, 3), (4, 5), (6, 7))
    )
    starts, ends = np.array([0, 8000, 0, 9000], np.float32), np.array([9000, 0, 8000, 0], np.float32)
    answer = best_span(starts, ends, encoded, context)
    assert answer == {"answer": "b c", "score": 0.0, "start": 2, "end": 5}


def test_vectors_of_zeros_and_of_large_numbers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (normalized(np.zeros((2, 3), np.float32)) == 0).all()
        assert (shortened(np.zeros(4, np.float32), 2, renormalize=True) == 0).all()
        assert pool(np.full((5, 2), 3e38, np.float32), "mean").tolist() == [np.float32(3e38)] * 2


def with_token_outside(bundle: Path) -> Path:
    """A bundle whose tokenizer has a token more than the model's 5000."""
    tokenizer = json.loads((bundle / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": 5000, "content": "[OUTSIDE]"})
    (bundle / "tokenizer.json").write_text(json.dumps(tokenizer))
    return bundle


OUTSIDE = "a token [OUTSIDE] the vocabulary"
NAMED = r"text {} holds the id 5000 of the token '\[OUTSIDE\]', and the model's embedding has 5000 rows"


def test_an_id_outside_the_vocabulary_reaches_no_backend(
    example_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(monkeypatch)
    bundle = with_token_outside(own(example_bundle, tmp_path))
    add_engine(bundle)
    on_cpu, on_gpu = load(bundle, device="cpu"), load(bundle, device="cuda")
    monkeypatch.setattr(OnnxRuntimeBackend, "run", None)
    for model in (on_cpu, on_gpu):
        for call in (model, model.logits, model.outputs, model.prepare):
            with pytest.raises(InputError, match=NAMED.format(1)):
                call(["fine", OUTSIDE])
        with pytest.raises(InputError, match="item 1 holds the id 7000, and the model's"):
            model.outputs_of_tokens([np.array([4999]), np.array([1, 7000])])
        with pytest.raises(InputError, match="item 0 holds the id 1099511627776, and"):
            model.outputs_of_tokens([np.array([2**40])])
        with Batcher(model) as batcher, pytest.raises(InputError, match=NAMED.format(0)):
            batcher.submit(OUTSIDE)


def test_triton_and_the_service_refuse_an_id_outside_the_vocabulary(
    example_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_token_outside(own(example_bundle, tmp_path))
    package(bundle, tmp_path / "repository")
    server = Server(tmp_path / "repository", monkeypatch)
    first, second = server.execute(Request(TEXT=[[b"fine"]]), Request(TEXT=[[b"fine"], [OUTSIDE.encode()]]))
    assert json.loads(first["ANSWER"][0][0])["label"]
    assert second.code() == TritonError.INVALID_ARG
    assert second.message().startswith("text 1 holds the id 5000")
    with Service(bundle) as service:
        service.until_ready(PATIENCE)
        status, found, _ = service.ask("POST", "/predict", {"inputs": ["fine", OUTSIDE]})
        assert (status, found["error"]["type"]) == (422, "invalid_texts")
        assert "the id 5000 of the token '[OUTSIDE]'" in found["error"]["message"]


def test_the_vocabulary_is_that_of_config_json(example_bundle: Path, tmp_path: Path) -> None:
    bundle = with_token_outside(own(example_bundle, tmp_path))
    edit_config(bundle, lambda config: config.pop("vocab_size"))  # as many as transformers has by default
    with pytest.raises(BackendError, match="ONNX Runtime failed"):  # the control: what it is that is refused before
        load(bundle)([OUTSIDE])
    for wrong in (0, True, "many", None):
        edit_config(bundle, lambda config, wrong=wrong: config.update(vocab_size=wrong))  # type: ignore[misc]
        with pytest.raises(BundleError, match=r"config\.json: vocab_size is"):
            load(bundle)
    (bundle / "config.json").unlink()
    with pytest.raises(BundleError, match=r"config\.json does not exist"):
        load(bundle)


def test_a_text_is_cut_before_its_ids_are_looked_at(example_bundle: Path, tmp_path: Path) -> None:
    bundle = with_token_outside(own(example_bundle, tmp_path))
    model: Model = load(bundle)
    with pytest.warns(UserWarning, match="were cut"):
        assert model(["more " * 10_000 + OUTSIDE])[0]["label"]
