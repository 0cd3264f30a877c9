"""The machine that figures were taken on. Standard library only."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from mbexport.processor import processor_name

BUSY = 0.4  # of the cores


@dataclass(frozen=True)
class Machine:
    """``threads``: cores that every contender used; ``load``: runnable processes in the minute before.

    ``memory_bytes`` and ``load`` are None where the system does not say.
    """

    cpu: str
    cores: int
    threads: int
    memory_bytes: int | None
    load: float | None
    system: str
    python: str

    @property
    def busy(self) -> str | None:
        """A warning where other processes took cores before the run, None where they did not."""
        if self.load is None or self.load < BUSY * self.cores:
            return None
        return f"the machine was busy (load {self.load:.1f} on {self.cores} cores): figures may be too slow and uneven"


def this_machine(threads: int) -> Machine:
    """This machine, for a report."""
    return Machine(
        cpu=processor_name(),
        cores=os.cpu_count() or 1,
        threads=threads,
        memory_bytes=_memory_bytes(),
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
    )


def processor() -> str:
    """The CPU's name and its number of cores, in words."""
    return f"{processor_name()}, {os.cpu_count()} cores"


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such call, or no such name, on this system
        return None
