"""examples/service when a client leaves, the device dies or hangs, and the process is to end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.service.process import ROOT, Service
from examples.service.health import Health
from mbexport.errors import BackendError
from tests.service.conftest import PATIENCE, Held, metric, until


def is_computing(service: Service) -> bool:
    return service.ask("GET", "/health")[1]["computing_seconds"] is not None


def test_requests_of_a_client_that_left_are_not_computed(held: Callable[..., Held]) -> None:
    one = held(timeout=PATIENCE)
    before = metric(one.service, "mbexport_batch_texts_sum")
    one.order("hang")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(one.service.ask, "POST", "/predict", {"inputs": "a"})
        until(lambda: is_computing(one.service))
        with socket.create_connection(("127.0.0.1", one.service.port), timeout=PATIENCE) as client:
            body = json.dumps({"inputs": ["left"] * 5}).encode()
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            until(lambda: one.service.ask("GET", "/health")[1]["waiting"] == 5)
        until(lambda: one.service.ask("GET", "/health")[1]["waiting"] == 0)
        one.order("")
        assert first.result()[0] == 200
    assert one.service.ask("POST", "/predict", {"inputs": "b"})[0] == 200
    until(lambda: metric(one.service, "mbexport_batch_texts_sum") == before + 2)
    assert metric(one.service, 'mbexport_request_seconds_count{outcome="cancelled"}') == 5
    assert metric(one.service, 'mbexport_http_requests_total{path="/predict",status="499"}') == 1


def test_a_dead_backend_is_shown_by_ready_and_live(held: Callable[..., Held]) -> None:
    one = held()
    assert one.service.ask("GET", "/health/live")[0] == 200
    one.order("fail")
    status, found, headers = one.service.ask("POST", "/predict", {"inputs": ["a", "b"]})
    assert (status, found["error"]["type"], headers["retry-after"]) == (503, "backend", "1")
    assert "the device is lost" in found["error"]["message"]
    for path in ("/health", "/health/ready", "/health/live"):
        status, found, _ = one.service.ask("GET", path)
        assert status == 503
        assert "the device is lost" in found["reason"]
    one.order("")  # what is dead stays dead: the process is to be replaced
    assert one.service.ask("POST", "/predict", {"inputs": "a"})[0] == 503
    assert one.service.end() == 0


def test_a_model_that_computes_nan_is_no_answer(held: Callable[..., Held]) -> None:
    one = held()
    one.order("nan")
    status, found, _ = one.service.ask("POST", "/predict", {"inputs": "a"})
    assert (status, found["error"]["type"]) == (500, "not_finite")


def test_a_device_that_dies_while_nobody_asks_is_found(held: Callable[..., Held]) -> None:
    one = held(ready_window=0.3, dead_after=0.9)
    one.order("fail")
    until(lambda: one.service.ask("GET", "/health/ready")[0] == 503)
    until(lambda: one.service.ask("GET", "/health/live")[0] == 503)


def test_the_heartbeat_survives_what_nobody_expected(caplog: pytest.LogCaptureFixture) -> None:
    outcomes: list[Exception | None] = [MemoryError("odd"), BackendError("again"), None, BackendError("later"), None]

    class Odd:
        """A batcher whose checks end as the list says."""

        fault = last_success = busy_since = None

        def check(self, _: float) -> None:
            if not outcomes:
                return
            outcome = outcomes.pop(0)
            seen.append(health.unready())
            if outcome is not None:
                raise outcome

    async def beat() -> None:
        task = asyncio.create_task(health.heartbeat())
        while outcomes and not task.done():
            await asyncio.sleep(0.001)
        task.cancel()

    seen: list[str | None] = []
    health = Health(Odd(), ready_window=1e-6, dead_after=PATIENCE)  # type: ignore[arg-type]
    asyncio.run(asyncio.wait_for(beat(), PATIENCE))
    assert outcomes == []
    reasons = [str(reason).rpartition("; ")[2] for reason in seen]
    assert reasons[1:] == ["odd", "again", "none was tried", "later"]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["the model does not compute: odd", "the model does not compute: later"]


def test_a_forward_pass_that_hangs_is_shown_and_ends(held: Callable[..., Held]) -> None:
    one = held(ready_window=0.5, dead_after=3, timeout=1)
    one.order("hang")
    status, found, _ = one.service.ask("POST", "/predict", {"inputs": "a"})
    assert (status, found["error"]["type"]) == (504, "deadline")
    status, found, _ = until(lambda: (answer := one.service.ask("GET", "/health/ready"))[0] == 503 and answer)
    assert "has been running for" in found["reason"]
    until(lambda: one.service.ask("GET", "/health/live")[0] == 503)
    one.order("")  # it was only slow
    until(lambda: one.service.ask("GET", "/health")[0] == 200)
    assert one.service.ask("POST", "/predict", {"inputs": "a"})[0] == 200


def test_a_forward_pass_that_never_ends_does_not_keep_the_process(held: Callable[..., Held]) -> None:
    one = held(drain_timeout=1, timeout=PATIENCE)
    one.order("hang")
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(one.service.ask, "POST", "/predict", {"inputs": "a"}, timeout=PATIENCE)
        until(lambda: is_computing(one.service))
        assert one.service.end() == 1
        status, found, _ = asking.result()
        assert (status, found["error"]["type"]) == (503, "closing")
    assert "a forward pass does not end" in one.log.read_text()


def test_sigterm_finishes_what_was_taken(held: Callable[..., Held]) -> None:
    one = held(timeout=PATIENCE)
    one.order("hang")
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(one.service.ask, "POST", "/predict", {"inputs": ["a", "b"]}) for _ in range(4)]
        until(lambda: is_computing(one.service) and metric(one.service, "mbexport_http_in_flight") == 4)
        one.service.process.send_signal(signal.SIGTERM)
        until(lambda: refuses_connections(one.service))
        one.order("")
        assert [future.result()[0] for future in asking] == [200] * 4
    assert one.service.process.wait(PATIENCE) == 0


def refuses_connections(service: Service) -> bool:
    try:
        service.ask("GET", "/health")
    except OSError:
        return True
    return False


def unread(service: Service) -> socket.socket:
    """A client with two requests, of answers larger than all buffers, that reads nothing."""
    client = socket.socket()
    client.settimeout(PATIENCE)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", service.port))
    body = json.dumps({"inputs": ["a"] * 6000}).encode()
    client.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body) * 2)
    until(lambda: metric(service, "mbexport_batch_texts_sum") >= 6000)
    return client


def test_a_client_that_reads_nothing_does_not_keep_the_process(encoder: Path) -> None:
    with Service(encoder, drain_timeout=0.001, max_texts=6000) as service:
        service.until_ready(PATIENCE)
        with unread(service):
            assert service.end(seconds=PATIENCE) == 0


def test_a_client_that_reads_nothing_loses_its_connection(encoder: Path) -> None:
    with Service(encoder, read_timeout=0.5, max_texts=6000) as service:
        service.until_ready(PATIENCE)
        with unread(service):
            answers = 'mbexport_http_requests_total{path="/embed",status="%d"}'
            until(lambda: metric(service, answers % 200) + metric(service, answers % 499) == 2)


@pytest.mark.parametrize("module", ["uvicorn", "fastapi", "numpy"])
def test_sigterm_during_the_imports_is_not_lost(module: str, tmp_path: Path) -> None:
    """As PID 1 it would be without a handler; here exit code 0 tells that there was one."""
    (tmp_path / f"{module}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "examples.service"]
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_killed_and_started_again_it_serves(example_bundle: Path) -> None:
    with Service(example_bundle) as first:
        first.until_ready(PATIENCE)
        expected = first.ask("POST", "/predict", {"inputs": "The striker scored."})[1]
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
        with Service(example_bundle, port=first.port) as second:
            assert second.until_ready(PATIENCE) < 30
            assert second.ask("POST", "/predict", {"inputs": "The striker scored."})[:2] == (200, expected)
            assert second.end() == 0
