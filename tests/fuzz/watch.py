"""Runs one input after another and keeps those that break the promise; a limit on memory, time and a record of both."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mbexport.errors import MbexportError

SLOW = 10.0  # seconds for an input, all texts or commands that it is given to included; two cores that others use, too
LARGEST = 512 * 2**20  # bytes by which an input may raise the process's peak
HANGS = 60  # seconds, after which the process is ended
ADDRESS_SPACE = 8 * 2**30  # bytes; an allocation beyond it fails


@dataclass
class Tally:
    """What was tried. ``faults``: a line for each kind, the first input of which was kept, by its file's name."""

    target: str
    engine: str
    seed: int
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    peak_bytes: int = 0
    faults: dict[str, str] = field(default_factory=dict)


class Watch:
    """Calls a target; what it raises that is no MbexportError is kept, and the search goes on.

    Args:
        run: the target.
        tally: counts.
        planned: inputs, from which number on the tally is written after each.
        folder: gets ``current``, the input that is being tried, inputs that are faults, and ``tally.json``.
    """

    def __init__(self, run: Callable[[bytes], None], tally: Tally, folder: Path, planned: int = 0) -> None:
        self._planned = planned
        self._run, self._tally, self._folder = run, tally, folder
        self._current = os.open(folder / "current", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._seen: set[str] = set()
        self._began = self._saved = time.perf_counter()

    def __call__(self, data: bytes) -> None:
        """Try an input."""
        os.ftruncate(self._current, 0)
        os.pwrite(self._current, data, 0)
        tally, peak = self._tally, _peak()
        started = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the package's own, meant for users
                warnings.simplefilter("error", RuntimeWarning)  # NumPy's, which a user would see beside the one line
                self._run(data)
            tally.accepted += 1
        except MbexportError:
            tally.refused += 1
        except KeyboardInterrupt:
            raise
        except BaseException as fault:  # a Rust panic is no Exception
            self._keep(data, _kind(fault), traceback.format_exc())
        took = time.perf_counter() - started
        if took > SLOW:
            self._keep(data, "slow", f"{took:.1f} s")
        if _peak() - peak > LARGEST:
            self._keep(data, "memory", f"{(_peak() - peak) / 2**20:.0f} MiB")
        tally.inputs += 1
        tally.slowest = max(tally.slowest, took)
        # atheris ends the process without a word, so the end may be any input from here on
        if tally.inputs >= self._planned or started - self._saved > 1:
            self.save()

    def _keep(self, data: bytes, kind: str, why: str) -> None:
        if kind in self._seen:
            return
        self._seen.add(kind)
        name = hashlib.sha256(data).hexdigest()[:12]
        (self._folder / name).write_bytes(data)
        (self._folder / f"{name}.txt").write_text(f"{kind}\n{why}", encoding="utf-8", errors="replace")
        self._tally.faults[name] = kind
        self.save()

    def save(self) -> None:
        """Write the tally down."""
        self._saved = time.perf_counter()
        self._tally.seconds = self._saved - self._began
        self._tally.peak_bytes = _peak()
        (self._folder / "tally.json").write_text(json.dumps(asdict(self._tally)), encoding="utf-8")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _kind(fault: BaseException) -> str:
    """The same for faults of one cause: the exception and the deepest line of the package."""
    frames = traceback.extract_tb(fault.__traceback__)
    own = [frame for frame in frames if f"{os.sep}mbexport{os.sep}" in frame.filename]
    where = f"{Path(own[-1].filename).name}:{own[-1].name}:{own[-1].lineno}" if own else ""
    said = str(fault)[:60] if type(fault).__name__ == "CommandFailedError" else ""
    return f"{type(fault).__name__} {where} {said}".strip()
