"""Processes of a Ray of our own: started in a folder of their own, by which all of them are found."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv-ray" / "bin"
EXAMPLES = ROOT / "examples" / "ray"
WAIT = 180.0  # seconds: it hangs


class Ray:
    """A folder that processes of a test run in, Ray's included, which inherit it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Short: Ray's sockets lie below it, and their paths may have 107 bytes.
        self.environment = os.environ | {
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder), "HOME": str(folder), "PYTHONPATH": str(EXAMPLES),
        }  # fmt: skip
        self.environment.pop("RAY_ADDRESS", None)

    def start(self, *command: object, **how: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(part) for part in command], cwd=self.folder, env=self.environment, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (ignored in background jobs)
            **how,
        )  # fmt: skip

    def run(self, *command: object, given: object = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in command], cwd=self.folder, env=self.environment, text=True, capture_output=True,
            check=False, input=json.dumps(given), timeout=WAIT,
        )  # fmt: skip

    def peer(self, *arguments: object, given: object = None) -> Any:
        """What a command of ray_peer.py prints."""
        result = self.run(BIN / "python", ROOT / "tests" / "interop" / "ray_peer.py", *arguments, given=given)
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout.splitlines()[-1])

    def processes(self) -> dict[int, str]:
        """All that run in the folder, and their names."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and (entry / "cwd").readlink() == self.folder:
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        return found

    def all_gone(self, but: str = "nothing") -> bool:
        """Whether all processes, perhaps but some, have ended, waiting for those that are about to."""
        return wait_for(lambda: all(but in name for name in self.processes().values()), 60)

    def end(self) -> None:
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        assert self.all_gone()


@contextlib.contextmanager
def ray_folder() -> Iterator[Ray]:
    ray = Ray(Path(tempfile.mkdtemp(prefix="r")).resolve())
    try:
        yield ray
    finally:
        ray.end()
        shutil.rmtree(ray.folder, ignore_errors=True)


def wait_for(condition: Callable[[], Any], seconds: float = WAIT) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
