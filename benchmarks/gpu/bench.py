"""Contenders' processes on the GPU, and what one of them does with one workload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu.contenders import Contender
from benchmarks.gpu.exactness import FloatArray, judged
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.rates import floor_of
from benchmarks.gpu.smi import Memory
from benchmarks.gpu.state import State
from benchmarks.gpu.turns import ReferenceFailedError, take_turns
from mbexport.bench.process import WorkerProcess
from mbexport.bench.workloads import Workload
from mbexport.errors import ContenderError, MbexportError
from mbexport.parity.report import Figures
from mbexport.processes import one_line

MODULE = "benchmarks.gpu.worker"
LONGEST_ANSWER = 300  # seconds; a GPU costs too much to wait for what hangs
ENGINES_WARM_UP = 5.0  # seconds, in which TensorRT-RTX compiles aside


class Exact(NamedTuple):
    """By workload, PyTorch's logits in FP32, [texts, labels]; and how far off its own FP16 run is, over all of them."""

    logits: dict[str, FloatArray]
    own: Figures


class Bench:
    """The processes, of which the reference's stays loaded.

    Args:
        kit: makes graphs and engines.
        state: notes what contenders say of themselves.
        folder: for files that workers read and write.
        device: ``cuda`` or ``cpu``.
        say: told what is done.

    Attributes:
        reference: which one the others take turns with; None while it is not known.
    """

    def __init__(self, kit: Kit, state: State, folder: Path, device: str, say: Callable[[str], None]) -> None:
        self._kit, self._state, self._folder, self._device, self._say = kit, state, folder, device, say
        self.reference: Contender | None = None
        self._worker: WorkerProcess | None = None  # the reference's

    def load(self, contender: Contender) -> WorkerProcess:
        """A contender's process, loaded; what it says of itself is noted.

        Raises:
            ContenderError: it cannot be had, or not loaded, for whatever reason.
        """
        bundle, file = self.file(contender) if contender.is_ours else (None, None)
        worker = WorkerProcess(MODULE, LONGEST_ANSWER)
        try:
            about = worker.ask(
                do="load", contender=asdict(contender), checkpoint=str(self._kit.checkpoint),
                bundle=str(bundle), file=file, device=self._device,
            )  # fmt: skip
        except ContenderError:
            worker.close()
            raise
        self._state.contenders[contender.name] = about
        self._state.save()
        return worker

    def file(self, contender: Contender) -> tuple[Path, str]:
        """See :meth:`Kit.file`.

        Raises:
            ContenderError: it cannot be made, for whatever reason.
        """
        try:
            return self._kit.file(contender)
        except MbexportError as cause:
            raise ContenderError(str(cause)) from cause
        except Exception as cause:  # builders and exporters of others, which raise what they like
            raise ContenderError(one_line(cause, 500)) from cause

    def load_reference(self) -> None:
        """Load it where it is known, and not loaded.

        Raises:
            ReferenceFailedError: it cannot be loaded any more.
        """
        if self.reference is not None and self._worker is None:
            self._say(f"loading {self.reference.name}, which others take turns with")
            try:
                self._worker = self.load(self.reference)
            except ContenderError as error:
                raise ReferenceFailedError(f"{self.reference.name} does not load any more: {error}") from error

    def close(self) -> None:
        """End the reference's process."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def workload_file(self, workload: Workload) -> Path:
        """The workload as workers read it."""
        file = self._folder / f"{workload.name}.npz"
        if not file.exists():
            part = file.with_suffix(".part.npz")
            workload.save(part)
            part.replace(file)
        return file

    def cell(
        self, contender: Contender, worker: WorkerProcess, workload: Workload, exact: Exact, memory: Memory
    ) -> dict[str, Any] | None:
        """The figures of a contender on a workload, or why it failed; None where the reference did, twice."""
        for _ in range(2):
            try:
                self.load_reference()
                return self._figures(contender, worker, workload, exact, memory)
            except ReferenceFailedError as error:  # noqa: PERF203 (two rounds)
                self._say(f"    the reference failed: {error}")
                self.close()
            except (ContenderError, ValueError) as error:
                self._say(f"    {error}")
                return {"failure": str(error)}
        return None

    def _figures(
        self, contender: Contender, worker: WorkerProcess, workload: Workload, exact: Exact, memory: Memory
    ) -> dict[str, Any]:
        outputs = self._folder / "outputs.npy"
        request = {"do": "run", "workload": str(self.workload_file(workload)), "outputs": str(outputs)}
        workers = [worker] if self._worker is None else [self._worker, worker]
        if self._worker is not None:
            try:
                self._worker.ask(**request)
            except ContenderError as error:
                raise ReferenceFailedError(str(error)) from error
        with memory:
            worker.ask(**request)
        parity = judged(exact.logits[workload.name], np.load(outputs), contender.precision, exact.own)
        turns = take_turns(workers, ENGINES_WARM_UP if contender.kind == "engine" and self._device == "cuda" else 0)
        cell = {"parity": parity, "memory": memory.taken, **turns}
        cell["against"] = contender.name if self.reference is None else self.reference.name
        floor = floor_of(self._kit.size, workload, contender.precision, self._state.rates)
        if floor is not None:
            cell["floor"] = asdict(floor) | {"share": floor.seconds / cell["seconds"]}
        return cell

    def trace(self, worker: WorkerProcess, workload: Workload) -> dict[str, Any]:
        """Which kernels a workload is made of.

        Raises:
            ContenderError: it cannot be traced.
        """
        outputs = str(self._folder / "outputs.npy")
        worker.ask(do="run", workload=str(self.workload_file(workload)), outputs=outputs)
        return worker.ask(do="trace")
