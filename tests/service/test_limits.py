"""What examples/service refuses, and that it refuses it soon: over a socket."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks.service.process import ROOT, Service
from examples.service import app, inputs
from examples.service.errors import ServiceError
from examples.service.settings import Settings
from mbexport.errors import InputError
from mbexport.runtime import Model
from tests.service.conftest import PATIENCE, Held, metric, until


@pytest.fixture(scope="module")
def small(example_bundle: Path) -> Iterator[Service]:
    """A service with limits that are soon met."""
    limits = {"max_body_bytes": 300_000, "max_texts": 8, "max_chars": 1000, "read_timeout": 0.5}
    with Service(example_bundle, **limits) as running:
        running.until_ready(PATIENCE)
        yield running


def test_ten_megabytes_are_refused_without_being_kept(service: Service) -> None:
    service.ask("POST", "/predict", {"inputs": "a"})
    before = service.resident_bytes()
    for _ in range(5):
        status, found, headers = service.ask("POST", "/predict", {"inputs": "long " * 2_000_000})
        assert (status, found["error"]["type"], headers["connection"]) == (413, "body_too_large", "close")
    assert service.resident_bytes() - before < 10e6
    assert service.ask("GET", "/health")[0] == 200


def test_a_body_of_unknown_length_is_refused_where_it_gets_too_long(small: Service) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", small.port, timeout=PATIENCE)
    pieces = (b"x" * 10_000 for _ in range(200))
    connection.request("POST", "/predict", pieces, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["type"]) == (413, "body_too_large")
    body = json.dumps({"inputs": "in pieces"}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", small.port, timeout=PATIENCE)
    chunks = (body[at : at + 3] for at in range(0, len(body), 3))
    connection.request("POST", "/predict", chunks, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
    assert connection.getresponse().status == 200


def test_ten_thousand_texts_are_refused_by_default(service: Service) -> None:
    status, found, _ = service.ask("POST", "/predict", {"inputs": ["a text"] * 10_000})
    assert (status, found["error"]["type"]) == (413, "too_many_texts")
    assert "at most 1000" in found["error"]["message"]


def test_junk_is_counted_before_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[object] = []
    monkeypatch.setattr(inputs, "_parts", lambda item, _: looked_at.append(item))
    body = json.dumps({"inputs": [0] * 10_000}).encode()
    with pytest.raises(ServiceError, match="10000 texts, at most 1000"):
        inputs.read_call(body, (), "text-classification", inputs.Limits(1000, 100))
    assert looked_at == []


def test_large_bodies_are_read_beside_the_event_loop(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def read(*arguments: Any) -> inputs.Call:
        threads.append(threading.current_thread())
        return inputs.read_call(*arguments)

    monkeypatch.setattr(app, "read_call", read)
    served = app.Served(model, Settings())
    try:
        for size in (10, 90_000):
            text = "x" * size
            assert asyncio.run(served.call(json.dumps({"inputs": text}).encode())).items == [text]
    finally:
        served.batcher.close()
    assert [thread is threading.main_thread() for thread in threads] == [True, False]


def test_ten_thousand_texts_are_answered_where_they_are_allowed(example_bundle: Path, model: Model) -> None:
    texts = [f"Match {number}" for number in range(10_000)]
    expected = model(texts)
    with Service(example_bundle, max_texts=10_000) as service, ThreadPoolExecutor(1) as pool:
        service.until_ready(PATIENCE)
        many = pool.submit(service.ask, "POST", "/predict", {"inputs": texts}, timeout=PATIENCE)
        until(lambda: metric(service, "mbexport_queue_texts") > 0 or many.done())
        # Others get their turn meanwhile: one request fills a part of the queue only.
        assert service.ask("POST", "/predict", {"inputs": "another"})[0] == 200
        status, found, _ = many.result()
    assert status == 200
    wrong = [
        number
        for number, (one, other) in enumerate(zip(found["predictions"], expected, strict=True))
        if one["label"] != other["label"] or abs(one["score"] - other["score"]) > 1e-5
    ]
    assert wrong == []


def test_long_texts_are_named_before_anything_is_computed(small: Service) -> None:
    before = metric(small, "mbexport_batch_texts_sum")
    status, found, _ = small.ask("POST", "/predict", {"inputs": ["a", "x" * 1001, ["a", "y" * 2000]]})
    assert (status, found["error"]["type"]) == (422, "invalid_texts")
    assert [row["item"] for row in found["error"]["items"]] == [1, 2]
    assert "1001 characters, at most 1000" in found["error"]["message"]
    assert small.ask("POST", "/predict", {"inputs": "x" * 1000})[0] == 200
    assert small.ask("POST", "/predict", {"inputs": ["a"] * 8})[0] == 200
    assert small.ask("POST", "/predict", {"inputs": ["a"] * 9})[0] == 413
    until(lambda: metric(small, "mbexport_batch_texts_sum") == before + 9)


def test_a_body_that_does_not_come_is_not_waited_for(small: Service) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=PATIENCE) as client:
        client.sendall(b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"inputs"')
        answer = b""
        while chunk := client.recv(4096):  # until the service closes it
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"body_timeout"' in answer
    assert b"9 bytes" in answer


@pytest.mark.parametrize(("requests_before", "sent"), [(0, b""), (0, b"GET /hea"), (1, b"GET /hea")])
def test_headers_that_do_not_come_are_not_waited_for(small: Service, requests_before: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=PATIENCE) as client:
        for _ in range(requests_before):
            client.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
        client.sendall(sent)
        while client.recv(4096):  # until the service closes it
            pass


def test_a_client_that_leaves_amid_its_body_leaves_nothing_behind(small: Service) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", small.port), timeout=PATIENCE) as client:
            client.sendall(b'POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"inputs"')
    until(lambda: metric(small, "mbexport_http_in_flight") == 0)
    assert small.ask("POST", "/predict", {"inputs": "a"})[0] == 200


def test_too_many_requests_are_refused_at_once_and_unread(held: Callable[..., Held]) -> None:
    one = held(max_requests=2, timeout=PATIENCE)
    one.order("hang")
    with ThreadPoolExecutor(2) as pool:
        taken = [pool.submit(one.service.ask, "POST", "/predict", {"inputs": "a"}) for _ in range(2)]
        until(lambda: metric(one.service, "mbexport_http_in_flight") == 2)
        connection = http.client.HTTPConnection("127.0.0.1", one.service.port, timeout=PATIENCE)
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Length", "30")
        connection.endheaders()  # and no body yet
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("retry-after")) == (429, "1")
        assert json.loads(answer.read())["error"]["type"] == "busy"
        status, found, headers = one.service.ask("POST", "/predict", b" " * 100_000)  # more than is read and dropped
        assert (status, found["error"]["type"], headers["connection"]) == (429, "busy", "close")
        connection.send(b" " * 30)
        connection.request("GET", "/health")  # the connection is still of use
        assert connection.getresponse().status == 200
        connection.close()
        one.order("")
        assert [future.result()[0] for future in taken] == [200, 200]


def is_cut(service: Service) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE) as client:
            client.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            return client.recv(100) == b""
    except ConnectionError:
        return True


def test_idle_connections_do_not_fail_the_probes(example_bundle: Path) -> None:
    with Service(example_bundle, max_connections=8, read_timeout=PATIENCE) as service, ExitStack() as stack:
        service.until_ready(PATIENCE)
        address = ("127.0.0.1", service.port)
        for _ in range(8):
            stack.enter_context(socket.create_connection(address, timeout=PATIENCE))
        status, found, headers = service.ask("POST", "/predict", {"inputs": "a"})
        assert (status, found["error"]["type"], headers["connection"]) == (503, "too_many_connections", "close")
        assert "9 connections are open, at most 8" in found["error"]["message"]
        assert service.ask("GET", "/info")[0] == 503
        assert [service.ask("GET", path)[0] for path in ("/health", "/health/live", "/health/ready")] == [200] * 3
        assert metric(service, 'mbexport_http_requests_total{path="/predict",status="503"}') == 1
        for _ in range(8):
            stack.enter_context(socket.create_connection(address, timeout=PATIENCE))
        assert is_cut(service)
        stack.close()
        until(lambda: service.ask("POST", "/predict", {"inputs": "a"})[0] == 200)


def test_a_full_queue_refuses_and_what_waits_is_answered(held: Callable[..., Held]) -> None:
    one = held(max_waiting=4, timeout=PATIENCE)
    one.order("hang")
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(one.service.ask, "POST", "/predict", {"inputs": "a"})
        until(lambda: one.service.ask("GET", "/health")[1]["computing_seconds"] is not None)
        taken = [pool.submit(one.service.ask, "POST", "/predict", {"inputs": "b"}) for _ in range(4)]
        until(lambda: one.service.ask("GET", "/health")[1]["waiting"] == 4)
        status, found, headers = one.service.ask("POST", "/predict", {"inputs": "c"})
        assert (status, found["error"]["type"], headers["retry-after"]) == (429, "busy", "1")
        assert "4 texts" in found["error"]["message"]
        one.order("")
        assert [future.result()[0] for future in [first, *taken]] == [200] * 5


BAD_SETTINGS = {
    "MAX_TEXTS": ("0", "expected a whole number from 1"),
    "TIMEOUT": ("nan", "expected a number of seconds"),
    "THREADS": ("two", "expected a whole number from 0"),
    "LISTEN": ("8000", "expected HOST:PORT"),
    "DEAD_AFTER": ("3", "expected more than MBEXPORT_READY_WINDOW"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_setting_that_cannot_be_is_refused(name: str) -> None:
    value, message = BAD_SETTINGS[name]
    with pytest.raises(InputError, match=message):
        Settings.from_environment({f"MBEXPORT_{name}": value})


def test_other_variables_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings.from_environment({"MBEXPORT_MAX_TEXT": "3", "MBEXPORT_MAX_TEXTS": "4", "PATH": "x"})
    assert settings == Settings(max_texts=4)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        "MBEXPORT_MAX_TEXT is no setting of this service; those are MBEXPORT_BUNDLE"
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("BUNDLE", "no/such/bundle", "no/such/bundle"),
        ("REQUIRE_DEVICE", "cuda", "the model runs on cpu"),
        ("LISTEN", "no.such.host.invalid:8000", "no.such.host.invalid:8000"),
        ("LISTEN", f"{'a' * 70}:8000", "cannot listen"),
        ("LISTEN", "192.0.2.1:8000", "not this machine's"),
        ("LISTEN", "{taken}", "Address already in use"),
    ],
)
def test_a_service_that_cannot_start_says_why_in_one_line(
    name: str, value: str, message: str, example_bundle: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        given = {"MBEXPORT_BUNDLE": str(example_bundle), "MBEXPORT_LISTEN": "127.0.0.1:0", "PYTHONPATH": str(ROOT)}
        given[f"MBEXPORT_{name}"] = value.replace("{taken}", listen)
        command = [sys.executable, "-m", "examples.service"]
        ended = subprocess.run(
            command, check=False, env={**os.environ, **given}, capture_output=True, text=True, timeout=PATIENCE
        )
    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stderr.startswith("service: error: ")
    assert ended.stderr.count("\n") == 1
