"""Runs on all cores one after the other, or side by side on one core each."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mbexport.errors import BackendError
from mbexport.runtime.backends.interface import Backend
from mbexport.runtime.backends.ort import OnnxRuntimeBackend
from mbexport.runtime.cpu_limit import available_cores, container_cores
from mbexport.runtime.schedule import MOST_LANES, MOST_TOKENS, Run, plan_runs, share_cores

T = TypeVar("T")
RUNS_A_CORE = 4  # of texts of mixed lengths; benchmarks/NOTES.md has the figures


class Cores:
    """A loaded graph and the cores that it may use. Safe to call from several threads.

    Runs side by side need a second session, whose threads do not wait for one another. It is
    loaded when it is first of use, and holds its own copy of the matrices that ONNX Runtime packs:
    with mbexport's kernels none of the layers' in FP32.

    Args:
        graph: the ONNX file.
        threads: cores to use. None leaves those of a run alone to ONNX Runtime, unless the process's container
            has fewer, and takes for runs side by side all that this process may use.
        as_written: see :class:`OnnxRuntimeBackend`.
        share: whether runs may stand side by side.

    Raises:
        BackendError: ONNX Runtime refuses the file.
    """

    def __init__(
        self, graph: Path, threads: int | None = None, *, as_written: bool = False, share: bool = True
    ) -> None:
        self._graph = graph.absolute()  # it is read again, perhaps from another working directory
        self._files = _files_beside(self._graph)
        threads = threads or container_cores()
        self.all = OnnxRuntimeBackend(self._graph, threads, as_written=as_written)
        self._as_written = as_written
        self._count = threads or available_cores()
        self._share = share
        self._lock = threading.Lock()
        self._pair: tuple[OnnxRuntimeBackend, ThreadPoolExecutor] | None = None
        self._process = os.getpid()

    @property
    def batch_tokens(self) -> int:
        """Tokens that keep all cores busy, of mixed lengths, too: they fill the cores evenly only together."""
        return MOST_TOKENS * (RUNS_A_CORE * min(self._count, MOST_LANES) if self._share else 1)

    def plan(self, lengths: Sequence[int]) -> list[Run]:
        """See :func:`plan_runs`."""
        return plan_runs(lengths)

    def map(self, forward: Callable[[Backend, Run], T], runs: Sequence[Run]) -> Iterator[tuple[Run, T]]:
        """Each run and what ``forward`` makes of it, as they are done.

        Raises:
            BackendError: a forward pass failed, and runs that had not begun are given up; or the
                bundle was replaced since it was loaded.
        """
        plan = share_cores(runs, self._count if self._share else 1)
        for run in plan.in_turn:
            yield run, forward(self.all, run)
        if not plan.side_by_side:
            return
        backend, pool = self._one_core_each()
        waiting: deque[tuple[Run, Future[T]]] = deque()
        try:
            for run in plan.side_by_side:
                try:
                    waiting.append((run, pool.submit(forward, backend, run)))
                except RuntimeError:  # the main thread has ended, and pools take no more work
                    yield run, forward(self.all, run)
                if len(waiting) > 2 * plan.lanes:  # results that nobody took yet stay few
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()

    def _one_core_each(self) -> tuple[OnnxRuntimeBackend, ThreadPoolExecutor]:
        with self._lock:
            if self._pair is None or self._process != os.getpid():  # a forked process has no threads of the pool
                if _files_beside(self._graph) != self._files:
                    raise BackendError(f"{self._graph.parent} was changed since it was loaded; load the bundle again")
                backend = OnnxRuntimeBackend(self._graph, 1, as_written=self._as_written)
                self._pair = backend, ThreadPoolExecutor(min(self._count, MOST_LANES), "mbexport")
                self._process = os.getpid()
            return self._pair


def _files_beside(graph: Path) -> dict[str, tuple[int, int, int]]:
    """What tells whether a graph or its weights were replaced: number, size and time of all files of its folder."""
    if not graph.parent.is_dir():
        return {}
    states = {path.name: path.stat() for path in graph.parent.iterdir()}
    return {name: (state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states.items()}
