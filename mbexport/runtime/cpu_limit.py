"""How many cores a process may use: by its affinity, and by its container's share of CPU time (control groups)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_cores() -> int:
    """Cores that this process may run on at a time, at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([count, *map(math.ceil, _quotas())]))


def container_cores() -> int | None:
    """:func:`available_cores` where those are fewer than the machine has, which ONNX Runtime counts; else None."""
    cores = available_cores()
    return cores if cores < (os.cpu_count() or 1) else None


def _quotas() -> Iterator[float]:
    """Cores' worth of CPU time of each control group that the process is in, where that is limited."""
    for line in _words(OWN, "\n"):
        _, _, named = line.partition(":")
        controllers, _, path = named.partition(":")
        if controllers == "":  # version 2: one tree for all; a limit may stand at each level
            limits = [_words(folder / "cpu.max") for folder in _upwards(CGROUPS, path)]
        elif "cpu" in controllers.split(","):
            folders = _upwards(CGROUPS / "cpu", path)
            limits = [[*_words(own / "cpu.cfs_quota_us"), *_words(own / "cpu.cfs_period_us")] for own in folders]
        else:
            continue
        for limit in limits:
            if len(limit) == 2 and all(word.isdecimal() and int(word) for word in limit):  # else "max", or -1: none
                yield int(limit[0]) / int(limit[1])


def _upwards(root: Path, path: str) -> list[Path]:
    """The folder of a group and those above it; in a container the root alone may be there."""
    own = root / path.lstrip("/")
    return [own, *(folder for folder in own.parents if folder == root or root in folder.parents)]


def _words(path: Path, separator: str | None = None) -> list[str]:
    try:
        return [word for word in path.read_text("utf-8").split(separator) if word]
    except OSError:  # no such group, or no such system
        return []
