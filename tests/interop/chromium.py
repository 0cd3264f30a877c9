"""A headless Chromium, driven over its DevTools protocol by a pipe."""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 60  # that an answer may take
# No sandbox: a container's root has none. The rest is what a machine without a display or a GPU needs.
FLAGS = (
    "--headless", "--no-sandbox", "--no-zygote", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip


class Chromium:
    """One page of a running browser.

    Attributes:
        events: all that the page reported, in order: ``{"method": ..., "params": ...}``.
    """

    def __init__(self, process: subprocess.Popen[bytes], write: int, read: int) -> None:
        self._process, self._write, self._read = process, write, read
        self._buffer, self._last = b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command; what the page reports meanwhile goes to ``events``."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])

    def open(self, url: str) -> None:
        """Load a page, and wait until nothing of it is under way."""
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"Chromium said nothing for {SECONDS} seconds"
            received = os.read(self._read, 2**20)
            assert received, f"Chromium ended with {self._process.wait(5)}"
            self._buffer += received
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        if "method" in answer:
            self.events.append(answer)
        return answer


@contextmanager
def chromium(program: Path, profile: Path) -> Iterator[Chromium]:
    """A browser with a page, ended when the block ends.

    Args:
        program: the executable.
        profile: a folder for its files.
    """
    (first, write), (read, second) = os.pipe(), os.pipe()
    # It reads commands from descriptor 3 and writes answers to 4; these may be taken, by a pipe's ends even.
    their_read, their_write = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (first, second))
    os.close(first)
    os.close(second)
    shell = f'exec "$@" 3<&{their_read} 4>&{their_write}'
    command = ["bash", "-c", shell, "bash", str(program), *FLAGS, f"--user-data-dir={profile}"]
    with (profile / "chromium.log").open("wb") as log:
        process = subprocess.Popen(command, pass_fds=(their_read, their_write), stdout=log, stderr=log)
        os.close(their_read)
        os.close(their_write)
        try:
            yield Chromium(process, write, read)
        finally:
            os.close(write)
            os.close(read)
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
