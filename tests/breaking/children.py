"""Commands in forked children, whose imports are done: what is stopped there is work, and a check costs little.

The process that forks must have no threads, so it imports everything and computes nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "ctypes.dlsym"}
LONGEST = 120  # seconds, after which a command hangs


def import_all() -> None:
    """What the commands import."""
    import onnx_ir.passes.common  # noqa: F401
    import onnxruntime  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401
    from transformers.models.modernbert import modeling_modernbert  # noqa: F401

    import mbexport.bundle.write
    import mbexport.cli
    import mbexport.engines.build
    import mbexport.packaging.run
    import mbexport.parity.run
    import mbexport.pipeline
    import mbexport.quantize.run
    import mbexport.runtime.prepacked  # noqa: F401


class Command:
    """``mbexport`` with some arguments, in a session of its own.

    Args:
        arguments: its words.
        folder: where it runs.
        said: the file that gets what it says.
        last_step: the change of files at which it kills itself, counted from 1; 0 for none.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, said: Path, last_step: int = 0) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_run(arguments, folder, said, last_step))

    def stop(self, number: signal.Signals) -> None:
        """Send a signal; no error if the process is done."""
        os.kill(self.pid, number)  # not waited for yet, so its number is not another's

    def wait(self) -> int | None:
        """The exit code, negative for a signal; None if it had to be killed after LONGEST seconds."""
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return None

    def ends_with_its_children(self) -> bool:
        """Whether no process of its session is left, at last."""
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            if not any(_session(path) == self.pid for path in Path("/proc").iterdir() if path.name.isdigit()):
                return True
            time.sleep(0.05)
        return False


def _session(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[3])
    except OSError:
        return None


def _run(arguments: Sequence[str], folder: Path, said: Path, last_step: int) -> int:
    from mbexport.cli import main

    os.setsid()
    os.chdir(folder)
    words = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(words, 1)
    os.dup2(words, 2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a background job ignores some
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if last_step:
        _kill_at(last_step)
    try:
        main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        return 1
    return 0


def _kill_at(step: int) -> None:
    """End this process just before its change of files of that number."""
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in CHANGES:
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def in_child(function: Callable[[], Any]) -> Any:
    """What a function returns (JSON) in a child of its own; a text that begins with "died" where it does not return."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            content = json.dumps(function())
        except BaseException as error:
            content = json.dumps(f"died of {type(error).__name__}: {error}")
        with os.fdopen(writer, "w") as stream:
            stream.write(content)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        content = stream.read()
    _, status = os.waitpid(pid, 0)
    return json.loads(content) if content else f"died with code {os.waitstatus_to_exitcode(status)}"
