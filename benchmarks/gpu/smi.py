"""What nvidia-smi tells of the GPU: its driver and limits, and how much of its memory is in use."""

from __future__ import annotations

import os
import subprocess

COMMAND = ("nvidia-smi", "--format=csv,noheader,nounits")
FACTS = ("memory.total", "power.limit", "clocks.max.sm")


def ask(what: str) -> str | None:
    """One field of the GPU that this process sees first; None where nobody tells."""
    index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    command = [*COMMAND, f"--query-gpu={what}", f"--id={index}"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def used_memory() -> int | None:
    """Bytes of the GPU's memory that are in use, by whomever; None where nobody tells."""
    told = ask("memory.used")
    return int(told) * 2**20 if told is not None and told.isdigit() else None


class Memory:
    """What one process takes of the GPU, by how the memory in use grows; others must do nothing meanwhile.

    Args:
        before: bytes in use before the process was there.

    Attributes:
        taken: bytes so far; None where nobody tells.
    """

    def __init__(self, before: int | None) -> None:
        now = used_memory()
        self.taken = None if before is None or now is None else now - before
        self._before = before

    def __enter__(self) -> Memory:
        self._before = used_memory()
        return self

    def __exit__(self, *_error: object) -> None:
        now = used_memory()
        if self.taken is not None and now is not None and self._before is not None:
            self.taken += now - self._before
