"""Runs on all cores one after the other, or side by side on one core each."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mbexport.runtime.backends.ort import OnnxRuntimeBackend
from mbexport.runtime.schedule import Run, side_by_side

T = TypeVar("T")


class Cores:
    """A loaded graph and the cores that it may use. Safe to call from several threads.

    Runs side by side need a second session, whose threads do not wait for one another. It is
    loaded when it is first of use, and holds its own copy of the matrices as ONNX Runtime packs
    them: 0.4 GB at base size.

    Args:
        graph: the ONNX file.
        threads: cores to use; None takes those that this process may use.
        as_written: see :class:`OnnxRuntimeBackend`.
        share: whether runs may stand side by side.

    Raises:
        BackendError: ONNX Runtime refuses the file.
    """

    def __init__(
        self, graph: Path, threads: int | None = None, *, as_written: bool = False, share: bool = True
    ) -> None:
        self.all = OnnxRuntimeBackend(graph, threads, as_written=as_written)
        self._graph = graph
        self._as_written = as_written
        self._count = threads or available_cores()
        self._share = share
        self._lock = threading.Lock()
        self._pair: tuple[OnnxRuntimeBackend, ThreadPoolExecutor] | None = None

    def map(self, forward: Callable[[OnnxRuntimeBackend, Run], T], runs: Sequence[Run]) -> Iterator[tuple[Run, T]]:
        """Each run and what ``forward`` makes of it, in order, as they are done.

        Raises:
            BackendError: a forward pass failed; runs that had not begun are given up.
        """
        if not self._share or not side_by_side(runs, self._count):
            for run in runs:
                yield run, forward(self.all, run)
            return
        backend, pool = self._one_core_each()
        waiting: deque[tuple[Run, Future[T]]] = deque()
        try:
            for run in runs:
                waiting.append((run, pool.submit(forward, backend, run)))
                if len(waiting) > 2 * self._count:  # results that nobody took yet stay few
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
            if self._pair is None:
                backend = OnnxRuntimeBackend(self._graph, 1, as_written=self._as_written)
                self._pair = backend, ThreadPoolExecutor(self._count, "mbexport")
            return self._pair


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
