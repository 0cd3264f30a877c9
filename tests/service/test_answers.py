"""What examples/service answers, over a socket."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.service.process import ROOT, Service
from examples.service.settings import Settings
from mbexport import export_onnx
from mbexport.runtime import Model, load
from tests.checkpoints import ENCODER, EXAMPLE, save_checkpoint
from tests.service.conftest import PATIENCE, metric, until

TEXTS = [
    "The striker scored twice in the final minutes.",
    "",
    "The bank raised its interest rate again on Thursday. " * 300,
    "naïve café 東京 🎉",
    "".join(map(chr, [*range(32), *range(127, 160), 0x200B, 0x202E, 0xFEFF, 0xFFFF])),
]


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    return [one["label"] for one in found] == [one["label"] for one in expected] and np.allclose(
        [one["score"] for one in found], [one["score"] for one in expected], rtol=0, atol=1e-5
    )


def test_predict_answers_as_the_model_does(service: Service, model: Model) -> None:
    status, found, headers = service.ask("POST", "/predict", {"inputs": TEXTS})
    assert (status, headers["content-type"]) == (200, "application/json")
    assert same(found["predictions"], model(TEXTS))
    one = service.ask("POST", "/predict", {"inputs": TEXTS[0]})[1]["predictions"]
    assert same(one, model(TEXTS[:1]))
    pairs = service.ask("POST", "/predict", {"inputs": [["a bank", "a rate"], "a bank"]})[1]["predictions"]
    assert same(pairs, model([("a bank", "a rate"), "a bank"]))
    assert service.ask("POST", "/predict", {"inputs": []})[:2] == (200, {"predictions": []})


def test_many_clients_get_their_own_answers(service: Service, model: Model) -> None:
    texts = [f"{word} number {number}. " * (1 + number % 7) for number in range(40) for word in ("Match", "Bank")]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda text: service.ask("POST", "/predict", {"inputs": text}), texts))
    assert [status for status, _, _ in answers] == [200] * len(texts)
    assert same([found["predictions"][0] for _, found, _ in answers], model(texts))


def test_embed_gives_the_vectors_of_an_encoder(encoder: Path) -> None:
    texts, model = ["the cat sat", "", "on the mat"], load(encoder)
    with Service(encoder) as service:
        service.until_ready(PATIENCE)
        for options in ({}, {"prompt_name": "query"}, {"truncate_dim": 8}, {"prompt_name": None, "truncate_dim": None}):
            status, found, _ = service.ask("POST", "/embed", {"inputs": texts, **options})
            assert status == 200
            np.testing.assert_allclose(found["embeddings"], model.embed(texts, **options), rtol=0, atol=1e-5)
        assert np.abs(model.embed(texts) - model.embed(texts, "query")).max() > 1e-2  # so a lost prompt is seen
        status, found, _ = service.ask("POST", "/embed", {"inputs": texts, "prompt_name": "quarry"})
        assert (status, found["error"]["type"]) == (422, "invalid_request")
        assert "no prompt 'quarry'; the model has query" in found["error"]["message"]
        status, found, _ = service.ask("POST", "/embed", {"inputs": texts, "prompt_name": "k" * 1_000_000})
        assert status == 422
        assert len(found["error"]["message"]) < 300
        for wrong in (0, 1.5, True, "8", 2**40):
            assert service.ask("POST", "/embed", {"inputs": "a", "truncate_dim": wrong})[0] == 422, wrong
        assert service.ask("GET", "/info")[1]["prompts"] == ["query"]


def test_vectors_of_all_tokens_have_a_limit(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", ENCODER, vocab_size=5000)
    shutil.copy(EXAMPLE / "tokenizer.json", checkpoint)
    modules = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for idx, (path, kind) in enumerate((("", "Transformer"), ("1_Normalize", "Normalize")))  # and no pooling
    ]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    export_onnx(checkpoint, tmp_path / "bundle")
    with Service(tmp_path / "bundle", max_numbers=64 * 20) as service:
        service.until_ready(PATIENCE)
        status, found, _ = service.ask("POST", "/predict", {"inputs": "the cat sat"})
        assert status == 200
        assert np.shape(found["predictions"][0])[1:] == (64,)
        status, found, _ = service.ask("POST", "/predict", {"inputs": ["the cat sat"] * 20})
        assert (status, found["error"]["type"]) == (413, "answer_too_large")
        assert "more than 1280 numbers" in found["error"]["message"]


def test_embed_of_a_classifier_is_refused(service: Service) -> None:
    status, found, _ = service.ask("POST", "/embed", {"inputs": "a"})
    assert (status, found["error"]["type"]) == (400, "wrong_task")
    assert "text-classification" in found["error"]["message"]


def test_what_is_known_of_it(service: Service, model: Model) -> None:
    info = service.ask("GET", "/info")[1]
    assert info["task"] == "text-classification"
    assert info["labels"] == list(model.manifest.labels or ())
    assert info["running"].startswith("model_ort.onnx")
    for path in ("/health", "/health/live", "/health/ready"):
        status, found, _ = service.ask("GET", path)
        assert (status, found["reason"]) == (200, None)
    assert set(service.ask("GET", "/openapi.json")[1]["paths"]) >= {"/predict", "/embed", "/health/ready"}


def test_metrics_count_what_was_asked(service: Service) -> None:
    before = {name: metric(service, name) for name in ("mbexport_batch_texts_sum", "mbexport_truncated_texts_total")}
    service.ask("POST", "/predict", {"inputs": ["a", "b", "word " * 9000]})
    service.ask("GET", "/no/such/path")
    until(lambda: metric(service, "mbexport_batch_texts_sum") == before["mbexport_batch_texts_sum"] + 3)
    assert metric(service, "mbexport_truncated_texts_total") == before["mbexport_truncated_texts_total"] + 1
    assert metric(service, 'mbexport_http_requests_total{path="/predict",status="200"}') >= 1
    assert metric(service, 'mbexport_http_requests_total{path="other",status="404"}') >= 1
    assert metric(service, "process_resident_memory_bytes") > 0


HOSTILE = {
    b"": 400,
    b"{": 400,
    b"\xff\xfe": 400,
    b'{"inputs": "\xed\xa0\x80"}': 400,  # a surrogate in UTF-8's clothes
    b'{"inputs": NaN}': 400,
    b'{"inputs": "a", "inputs": "b"}': 400,
    b"[" * 200_000: 400,
    b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}": 400,
    b'{"inputs": ' + b"1" * 5000 + b"}": 400,
    b'{"inputs": [1' + b"0" * 400 + b"]}": 422,
    b"null": 422,
    b'"text"': 422,
    b"[]": 422,
    b"{}": 422,
    b'{"inputs": null}': 422,
    b'{"inputs": {"a": 1}}': 422,
    b'{"inputs": "a", "promt_name": "b"}': 422,
    b'{"inputs": "a", "\\ud800": "b"}': 422,
    b'{"inputs": "\\ud800"}': 422,
    b'{"inputs": ["a", "\\udfff b"]}': 422,
    b'{"inputs": ["a", 1]}': 422,
    b'{"inputs": [["a", "b", "c"]]}': 422,
    b'{"inputs": [["a", ["b"]]]}': 422,
    b'{"inputs": [[]]}': 422,
    b'{"inputs": 1e999}': 422,
    b'{"inputs": "a", "truncate_dim": 8}': 422,
    b'{"inputs": "\\u0000\\u0001\\u001f\\u007f"}': 200,
    b'{"inputs": "\\ud83c\\udf89"}': 200,
    b'{"inputs": ""}': 200,
    b'  {"inputs": ["", ""]}  ': 200,
}


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: repr(body[:40]))
def test_hostile_bodies_get_a_structured_answer(service: Service, body: bytes) -> None:
    status, found, headers = service.ask("POST", "/predict", body)
    assert status == HOSTILE[body]
    assert headers["content-type"] == "application/json"
    if status != 200:
        assert set(found["error"]) >= {"type", "message"}
        assert "\n" not in found["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"inputs": "a", "k" * 1_000_000: 1}),
        ("/predict", {"inputs": "a", "prompt_name": "k" * 1_000_000}),
        ("/" + "k" * 30_000, {"inputs": "a"}),
    ],
)
def test_an_error_does_not_repeat_all_that_was_sent(service: Service, path: str, body: dict[str, object]) -> None:
    status, found, _ = service.ask("POST", path, body)
    assert 400 <= status < 500
    assert len(json.dumps(found)) < 500


def test_bad_texts_are_named_by_their_numbers(service: Service) -> None:
    body = b'{"inputs": ["a", "\\ud800", ["a", "b"], 7, null]}'
    status, found, _ = service.ask("POST", "/predict", body)
    assert status == 422
    assert [row["item"] for row in found["error"]["items"]] == [1, 3, 4]
    assert "lone surrogate at character 0" in found["error"]["items"][0]["message"]


def test_other_paths_and_methods_are_refused(service: Service) -> None:
    for method, path, status, kind in [
        ("GET", "/", 404, "not_found"),
        ("POST", "/predict/", 404, "not_found"),
        ("GET", "/predict", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
    ]:
        found = service.ask(method, path)
        assert (found[0], found[1]["error"]["type"]) == (status, kind)


def test_what_is_no_http_is_refused_and_the_service_goes_on(service: Service) -> None:
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"POST /predict HTTP/9\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE) as client:
            client.sendall(nonsense + b"\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    assert service.ask("GET", "/health")[0] == 200


def test_a_connection_serves_many_requests(service: Service) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
    for _ in range(3):
        for body, status in ((b"{", 400), (b'{"inputs": "a"}', 200)):
            connection.request("POST", "/predict", body)
            answer = connection.getresponse()
            assert answer.status == status
            json.loads(answer.read())
    connection.close()


FOLDER = ROOT / "examples/service"


def test_the_folder_can_be_copied(example_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FOLDER, tmp_path / "my_service")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Service(example_bundle, command=("-m", "my_service")) as service:
        service.until_ready(PATIENCE)
        assert service.ask("POST", "/predict", {"inputs": "a"})[0] == 200


def test_its_readme_names_every_error_and_every_setting() -> None:
    readme = (FOLDER / "README.md").read_text("utf-8")
    code = "".join(path.read_text("utf-8") for path in FOLDER.glob("*.py"))
    kinds = dict(re.findall(r'ServiceError\(\s*(\d+), "(\w+)"', code))
    assert len(set(kinds)) >= 8
    for status, kind in re.findall(r'ServiceError\(\s*(\d+), "(\w+)"', code):
        if status != "499":
            assert re.search(rf"\| [\d, ]*{status}[\d, ]* \|.*`{kind}`", readme), f"{status} {kind}"
    for field in fields(Settings):
        assert f"`{field.name.upper()}`" in readme
