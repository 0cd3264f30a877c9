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
    """:func:`available_cores` where a control group gives fewer than there are, which ONNX Runtime does not see."""
    return available_cores() if any(quota <= (os.cpu_count() or 1) - 1 for quota in _quotas()) else None


def _quotas() -> Iterator[float]:
    """Cores' worth of CPU time of each control group that the process is in, where that is limited."""
    for line in _words(OWN, "\n"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2: one tree for all; a limit may stand at each level
            for folder in _upwards(CGROUPS, path):
                limit = _words(folder / "cpu.max")
                if len(limit) == 2 and limit[0] != "max":
                    yield int(limit[0]) / int(limit[1])
        elif "cpu" in controllers.split(","):
            for folder in _upwards(CGROUPS / "cpu", path):
                quota, period = (_words(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
                if quota and period and int(quota[0]) > 0:
                    yield int(quota[0]) / int(period[0])


def _upwards(root: Path, path: str) -> list[Path]:
    """The folder of a group and those above it; in a container the root alone may be there."""
    own = root / path.lstrip("/")
    return [own, *(folder for folder in own.parents if folder == root or root in folder.parents)]


def _words(path: Path, separator: str | None = None) -> list[str]:
    try:
        return [word for word in path.read_text("utf-8").split(separator) if word]
    except OSError:  # no such group, or no such system
        return []
