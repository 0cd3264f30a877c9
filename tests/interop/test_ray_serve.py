"""examples/ray/serve_app.py, really served by a local Ray."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mbexport.runtime import load
from tests.interop.ray_driver import BIN, EXAMPLES, ROOT, WAIT, Ray, free_port, ray_folder, wait_for

pytestmark = pytest.mark.interop
TEXTS = ["The bank raised its rate on Thursday.", "", "naïve 東京 🎉", "The striker scored twice. " * 40]
LONG = "The central bank raised its main interest rate. " * 800  # about 8192 tokens


def post(url: str, body: bytes) -> tuple[int, Any, Any]:
    """Status, JSON and headers of an answer."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=WAIT) as answer:
            return answer.status, json.loads(answer.read()), answer.headers
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else text, error.headers


def predict(url: str, inputs: Any) -> tuple[int, Any, Any]:
    return post(f"{url}/predict", json.dumps({"inputs": inputs}).encode())


def close(answers: list[Any], expected: list[Any]) -> bool:
    return [a["label"] for a in answers] == [e["label"] for e in expected] and [
        a["score"] for a in answers
    ] == pytest.approx([e["score"] for e in expected], abs=1e-5)


class Served:
    """Applications with small limits, each of another kind, on one Ray."""

    def __init__(self, ray: Ray, bundle: Path) -> None:
        self.ray, port = ray, free_port()
        self.url = f"http://127.0.0.1:{port}"
        common = {"bundle": str(bundle), "threads": 1, "max_replicas": 1}
        applications = {
            "plain": common,
            "narrow": common | {"max_ongoing_requests": 1, "max_queued_requests": 1},
            "short": common | {"max_waiting": 1, "max_texts": 1, "max_ongoing_requests": 32},
            "hurried": common | {"timeout": 0.001},
        }
        self._log = (ray.folder / "log").open("w+")
        command = BIN / "python", ROOT / "tests" / "interop" / "ray_peer.py", "serve"
        self._process = ray.start(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)
        self.by_handle = self._ask(json.dumps({"port": port, "applications": applications}))

    def _ask(self, line: str) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        for found in self._process.stdout:  # Ray prints what its workers log, too
            if found.startswith(("[{", '"deleted')):
                return json.loads(found)
        raise AssertionError(Path(self._log.name).read_text()[-3000:])

    def delete(self, name: str) -> None:
        assert self._ask(name) == f"deleted {name}"

    def end(self) -> int:
        assert self._process.stdin
        self._process.stdin.close()
        assert self._process.stdout
        self._process.stdout.read()
        return self._process.wait(WAIT)


@pytest.fixture(scope="module")
def served(example_bundle: Path) -> Iterator[Served]:
    with ray_folder() as ray:
        found = Served(ray, example_bundle)
        yield found
        assert found.end() == 0
        assert ray.all_gone()


def test_answers(served: Served, example_bundle: Path) -> None:
    expected = load(example_bundle)(TEXTS)
    status, found, _ = predict(f"{served.url}/plain", TEXTS)
    assert status == 200
    assert close(found["predictions"], expected)
    assert close(predict(f"{served.url}/plain", TEXTS[0])[1]["predictions"], expected[:1])
    assert predict(f"{served.url}/plain", [])[1] == {"predictions": []}
    assert [answer["label"] for answer in served.by_handle] == ["sports", "business"]  # from another deployment


def test_callers_at_the_same_time(served: Served, example_bundle: Path) -> None:
    texts = [f"{text} {number}" for number in range(4) for text in TEXTS]
    expected = load(example_bundle)(texts)
    barrier = threading.Barrier(len(texts))

    def call(text: str) -> Any:
        barrier.wait(WAIT)
        return predict(f"{served.url}/plain", text)

    with ThreadPoolExecutor(len(texts)) as pool:
        found = list(pool.map(call, texts))
    assert [status for status, _, _ in found] == [200] * len(texts)
    assert close([answer["predictions"][0] for _, answer, _ in found], expected)


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        (b'{"inputs": ["a", 3]}', 422, "invalid_texts", "item 1 is a int"),
        (b'{"inputs": ["a", "\\ud800"]}', 422, "invalid_texts", "item 1 holds a lone surrogate"),
        (b'{"inputs": {}}', 422, "invalid_request", 'expected {"inputs": text}'),
        (b'{"inputs": "a", "top_k": 3}', 422, "invalid_request", 'expected {"inputs": text}'),
        (b"[" * 100_000, 400, "invalid_json", "the body is no JSON"),
        (b'{"inputs": "\xff"}', 400, "invalid_json", "the body is no JSON"),
        (json.dumps({"inputs": ["a"] * 65}).encode(), 413, "too_many_texts", "65 texts, at most 64"),
        (b" " * 2_000_001, 413, "body_too_large", "2000001 bytes"),
    ],
)
def test_bad_requests(served: Served, body: bytes, status: int, kind: str, message: str) -> None:
    found, answer, _ = post(f"{served.url}/plain/predict", body)
    assert (found, answer["error"]["type"]) == (status, kind)
    assert message in answer["error"]["message"]
    assert predict(f"{served.url}/plain", "a")[0] == 200


def test_other_paths(served: Served) -> None:
    assert post(f"{served.url}/plain/other", b"{}")[1]["error"]["type"] == "not_found"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{served.url}/plain/predict", timeout=WAIT)
    assert refused.value.code == 405
    with urllib.request.urlopen(f"{served.url}/-/healthz", timeout=WAIT) as answer:
        assert answer.read() == b"success"


def at_once(callers: int, url: str, inputs: Any) -> list[tuple[int, Any, Any]]:
    barrier = threading.Barrier(callers)

    def call(_: int) -> tuple[int, Any, Any]:
        barrier.wait(WAIT)
        return predict(url, inputs)

    with ThreadPoolExecutor(callers) as pool:
        return list(pool.map(call, range(callers)))


def test_a_full_queue_of_texts_is_429(served: Served) -> None:
    found = at_once(16, f"{served.url}/short", LONG)
    assert {status for status, _, _ in found} == {200, 429}
    answer, headers = next((answer, headers) for status, answer, headers in found if status == 429)
    assert (answer["error"]["type"], headers["retry-after"]) == ("busy", "1")
    assert predict(f"{served.url}/short", "a")[0] == 200


def test_too_late_is_504(served: Served) -> None:
    status, found, _ = predict(f"{served.url}/hurried", [LONG] * 4)
    assert (status, found["error"]["type"]) == (504, "deadline")


def test_a_full_queue_of_requests_is_503(served: Served) -> None:
    found = at_once(8, f"{served.url}/narrow", [LONG] * 8)
    assert {status for status, _, _ in found} == {200, 503}
    assert "max_queued_requests" in next(answer for status, answer, _ in found if status == 503)  # Serve's own words
    assert predict(f"{served.url}/narrow", "a")[0] == 200


def test_shut_down_in_the_middle_of_a_request(served: Served, example_bundle: Path) -> None:
    started = threading.Event()

    def call() -> Any:
        started.set()
        return predict(f"{served.url}/narrow", [LONG] * 16)

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(call)
        started.wait()
        assert not wait_for(answer.done, 0.3)  # it is on its way
        served.delete("narrow")
        status, found, _ = answer.result(WAIT)
    assert status == 200
    assert close(found["predictions"], load(example_bundle)([LONG]) * 16)
    assert predict(f"{served.url}/narrow", "a")[0] == 404


def test_health_is_a_forward_pass(example_bundle: Path) -> None:
    with ray_folder() as ray:
        assert ray.peer("health", example_bundle) == [True, "ClosedError"]


def test_serve_run(example_bundle: Path) -> None:
    config = (EXAMPLES / "serve.yaml").read_text()
    port = free_port()
    for old, new in (
        ("/models/topics", str(example_bundle)),
        ("host: 0.0.0.0", "host: 127.0.0.1"),
        ("8000", str(port)),
    ):
        assert old in config
        config = config.replace(old, new)
    with ray_folder() as ray, (ray.folder / "log").open("w") as log:
        (ray.folder / "serve.yaml").write_text(config)
        running = ray.start(BIN / "serve", "run", "serve.yaml", stdout=log, stderr=log)

        def answers() -> bool:
            try:
                return predict(f"http://127.0.0.1:{port}", "The striker scored twice.")[0] == 200
            except OSError:
                return running.poll() is not None

        assert wait_for(answers), (ray.folder / "log").read_text()[-3000:]
        assert predict(f"http://127.0.0.1:{port}", TEXTS[:1])[1]["predictions"][0]["label"] == "business"
        running.send_signal(signal.SIGINT)
        running.wait(WAIT)
        assert ray.all_gone()
