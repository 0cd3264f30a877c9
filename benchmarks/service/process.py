"""The service as a process: start it, ask it, watch its memory, end it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parent.parent.parent


def free_port() -> int:
    """One that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service:
    """A running service; a context manager that ends it.

    Args:
        bundle: that it serves.
        port: that it listens on; None takes a free one.
        command: that starts it, instead of examples/service.
        log: file for its output.
        settings: its settings, by field name.
    """

    def __init__(
        self,
        bundle: Path,
        *,
        port: int | None = None,
        command: Sequence[str] = ("-m", "examples.service"),
        log: Path | None = None,
        **settings: object,
    ) -> None:
        self.port = port or free_port()
        given = {f"MBEXPORT_{name.upper()}": str(value) for name, value in settings.items()}
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MBEXPORT_")},
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "MBEXPORT_BUNDLE": str(bundle),
            "MBEXPORT_LISTEN": f"127.0.0.1:{self.port}",
            **given,
        }
        output = log.open("ab") if log else subprocess.DEVNULL
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        if log:
            output.close()  # type: ignore[union-attr]

    def ask(
        self, method: str, path: str, body: object = None, *, timeout: float = 30.0
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON (or text) and headers of an answer; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            sent = body if body is None or isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, sent)
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            text = answer.read()
            is_json = headers.get("content-type") == "application/json"
            return answer.status, json.loads(text) if is_json else text.decode(), headers
        finally:
            connection.close()

    def until_ready(self, seconds: float = 60.0) -> float:
        """Wait until it is ready; the seconds since its start.

        Raises:
            RuntimeError: it ended, or is not ready in time.
        """
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the service ended with {self.process.returncode} before it was ready")
            try:
                if self.ask("GET", "/health/ready")[0] == 200:
                    return time.perf_counter() - self.started
            except OSError:
                pass
            time.sleep(0.01)
        raise RuntimeError(f"the service was not ready in {seconds:g} s")

    def resident_bytes(self) -> int:
        """Its memory, of /proc."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def end(self, how: signal.Signals = signal.SIGTERM, seconds: float = 60.0) -> int:
        """Send a signal; the exit code."""
        self.process.send_signal(how)
        return self.process.wait(seconds)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Watch:
    """Every second: the service's memory, and what /health/ready says and how soon; a context manager."""

    def __init__(self, service: Service, every: float = 1.0) -> None:
        self.resident: list[int] = []
        self.ready: list[int] = []
        self.ready_seconds: list[float] = []
        self._service, self._every, self._stop = service, every, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            start = time.perf_counter()
            try:
                status = self._service.ask("GET", "/health/ready", timeout=10)[0]
            except OSError:
                status = 0
            self.ready.append(status)
            self.ready_seconds.append(time.perf_counter() - start)
            self.resident.append(self._service.resident_bytes())

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
