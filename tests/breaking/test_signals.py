"""What asks a process to end is an interrupt: it cleans up, says so in one line, and its exit code names the signal."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has none of these signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signal_that_ends_a_command(name: str, example_bundle: Path) -> None:
    number = getattr(signal, name)
    process = subprocess.Popen(
        [sys.executable, "-m", "mbexport", "predict", str(example_bundle)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL),  # noqa: PLW1509 (ignored in background jobs)
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"The bank raised its rate.\n" * 256)
    process.stdin.flush()
    process.stdout.readline()  # it has answered, so it waits for more
    process.send_signal(number)
    process.stdin.close()
    stderr = process.stderr.read().decode() if process.stderr else ""
    assert process.wait(60) == 128 + number
    assert stderr.strip() == f"mbexport: interrupted by {name}; nothing half-written was left"
