"""The measuring process of run.py: makes what is measured, measures what is not known yet, writes after each figure."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu import rtx_targets
from benchmarks.gpu.bench import LONGEST_ANSWER, MODULE, Bench, Exact
from benchmarks.gpu.contenders import EXACT, FALLBACK, REFERENCE, Contender, contenders, workloads
from benchmarks.gpu.exactness import FloatArray, figures_of
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.page import write_page
from benchmarks.gpu.smi import FACTS, Memory, ask, used_memory
from benchmarks.gpu.state import State
from benchmarks.gpu.turns import ReferenceFailedError
from benchmarks.gpu.worker import PACKAGES, versions
from mbexport.bench.process import WorkerProcess
from mbexport.bench.workloads import Workload
from mbexport.driver import Device, NoGpuError, find_gpu
from mbexport.errors import ContenderError, MbexportError
from mbexport.processes import last_words
from mbexport.processor import processor_name
from mbexport.version import __version__

MORE_TO_DO = 3  # the exit code where --minutes ended it
LONGEST_MODULE = 120  # seconds
GIVEN_UP = "two calls of run.py ended in it"
TRACED = ("1x128", "1x512", "1x8192")  # workloads whose kernels are listed


class TimeUpError(Exception):
    """Nothing new is begun."""


class Run:
    """One call of run.py.

    Args:
        options: as run.py parsed them.
        gpu: the GPU; None: a smoke run on the CPU.
    """

    def __init__(self, options: argparse.Namespace, gpu: Device | None) -> None:
        self._options, self._gpu = options, gpu
        self._device = "cpu" if gpu is None else "cuda"
        self._work = Path(options.work) / ("smoke" if options.smoke else "base")
        self._work.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        self._kit = Kit(self._work, gpu, smoke=options.smoke, say=self.say)
        self._workloads = workloads(self._kit.maker(), smoke=options.smoke)
        self._contenders = contenders()
        where = "cpu" if gpu is None else gpu.name
        name = "-".join(where.lower().replace("nvidia", "").replace("geforce", "").split())
        folder = Path(options.results) / (f"{name}-smoke" if options.smoke else name)
        self._state = State.open(folder, self._about())
        self._bench = Bench(self._kit, self._state, self._work, self._device, self.say)

    def say(self, what: str) -> None:
        """Progress, a line each."""
        print(f"{time.monotonic() - self._began:6.0f} s  {what}", file=sys.stderr, flush=True)

    def begin(self, what: str) -> None:
        """Say what begins.

        Raises:
            TimeUpError: there is no time for it.
        """
        minutes = self._options.minutes
        if minutes is not None and time.monotonic() - self._began > 60 * minutes:
            raise TimeUpError(what)
        self.say(what)

    def _about(self) -> dict[str, Any]:
        """What all figures of a folder have in common."""
        return {
            "mbexport": __version__,
            "gpu": None if self._gpu is None else asdict(self._gpu) | {"driver": ask("driver_version")},
            "model": "the trained example" if self._options.smoke else "ModernBERT-base, random weights (seed 0)",
            "limits": {fact: ask(fact) for fact in FACTS},
            "date": date.today().isoformat(),
            "machine": f"{processor_name()}, {os.cpu_count()} cores; Python {platform.python_version()}",
            "packages": versions((*PACKAGES, "torch", "transformers", "flash-attn", "flash-attn-4")),
        }

    def all(self) -> None:
        """Everything, in the order of its worth."""
        chosen = self._chosen()
        self._rates()
        exact = self._exact()
        try:
            self._find_reference(exact)
            for contender in chosen:
                if contender.builder == "tensorrt-rtx":
                    self._rtx_targets()
                self._contender(contender, exact)
                if contender.kind == "graph" and not contender.captured:
                    self._profile(contender)
                self.page()
        finally:
            self._bench.close()

    def page(self) -> str:
        """What is known, as Markdown, which is written, too."""
        return write_page(self._state)

    def list(self) -> None:
        """Name the contenders, and who cannot take part."""
        for contender in self._contenders:
            why_not = self._state.contenders.get(contender.name, {}).get("why_not")
            print(f"{contender.name}: {why_not}" if why_not else contender.name)

    def _chosen(self) -> list[Contender]:
        names = [contender.name for contender in self._contenders]
        unknown = [name for name in (*self._options.only, *self._options.again) if name not in names]
        if unknown:
            raise SystemExit(f"error: there is no contender {unknown[0]!r}, expected one of {'; '.join(names)}")
        self._state.forget(self._options.again)
        return [c for c in self._contenders if not self._options.only or c.name in self._options.only]

    def _rates(self) -> None:
        if self._state.rates:
            return
        self.begin("measuring matrix products and copies")
        with closing(WorkerProcess(MODULE, LONGEST_ANSWER)) as worker:
            rates = worker.ask(do="rates", device=self._device, smoke=self._options.smoke)
        notes = rates.pop("notes")
        self._state.rates, self._state.notes["rates"] = rates, notes
        self._state.save()

    def _rtx_targets(self) -> None:
        """Which engines of TensorRT-RTX load here."""
        if "tensorrt-rtx" not in versions(("tensorrt-rtx",)):
            return
        for target in rtx_targets.TARGETS:
            if target not in self._state.rtx_targets:
                what = f"TensorRT-RTX for {target}: does it load here?"
                self.begin(what)
                bundle, _ = self._bench.file(Contender("", "graph", "fp16"))
                if self._state.attempt(what):
                    found = ask_module("benchmarks.gpu.rtx_targets", str(bundle), target)
                else:
                    found = {"reason": GIVEN_UP}
                self._state.rtx_targets[target] = found
                self._state.save()
        loading = [target for target, found in self._state.rtx_targets.items() if found.get("loads")]
        names = [rtx_targets.NAMES[target] for target in reversed(loading) if target in rtx_targets.NAMES]
        self._kit.rtx_names = names  # the newest target first

    def _exact(self) -> Exact:
        """What answers are compared with. Workloads that PyTorch itself cannot compute here are left out.

        Raises:
            ContenderError: it computes none, or is not there.
        """
        exact, half = self._pytorch(EXACT, "fp32"), self._pytorch(FALLBACK, "fp16")
        self._workloads = [w for w in self._workloads if w.name in exact and w.name in half]
        if not self._workloads:
            raise ContenderError("PyTorch computes none of the workloads here; see the lines above")
        expected, own = (np.concatenate([logits[w.name] for w in self._workloads]) for logits in (exact, half))
        return Exact(exact, figures_of(expected, own))

    def _pytorch(self, name: str, precision: str) -> dict[str, FloatArray]:
        """By workload, PyTorch's logits, each text alone, so that nothing is padded; computed once, and kept."""
        files = {w.name: self._work / f"{w.name}.{precision}.npy" for w in self._workloads}
        todo = [workload for workload in self._workloads if not files[workload.name].exists()]
        if todo:
            worker = self._bench.load(Contender(name, "sdpa", precision))
            part, alone = self._work / "part.npy", self._work / "alone.npz"
            with closing(worker):
                for workload in todo:
                    self.begin(f"PyTorch in {precision}, which answers are compared with: {workload.name}")
                    replace(workload, batch=1).save(alone)
                    try:
                        worker.ask(do="run", workload=str(alone), outputs=str(part))
                        part.replace(files[workload.name])
                    except ContenderError as error:
                        self.say(f"  {workload.name} is left out: {error}")
        return {name: np.load(file) for name, file in files.items() if file.exists()}

    def _find_reference(self, exact: Exact) -> None:
        """Which one others take turns with: unpadded PyTorch with FlashAttention where it runs, else SDPA.

        Raises:
            ContenderError: neither runs.
        """
        by_name = {contender.name: contender for contender in self._contenders}
        for name in (REFERENCE, FALLBACK):
            self._contender(by_name[name], exact)
            if any("seconds" in self._state.cell(workload.name, name) for workload in self._workloads):
                self._bench.reference = by_name[name]
                return
        raise ContenderError("neither FlashAttention nor SDPA of PyTorch runs here; see the lines above")

    def _contender(self, contender: Contender, exact: Exact) -> None:
        """All workloads of a contender that are not known yet, in turns with the reference once that is known."""
        taken = [workload for workload in self._workloads if contender.takes(workload)]
        todo = [workload for workload in taken if not self._state.cell(workload.name, contender.name)]
        if self._state.is_out(contender.name) or not (todo or self._untraced(contender)):
            return
        worker = None
        try:
            for workload in todo:
                self.begin(f"{contender.name}: {workload.name}")
                if not self._state.attempt(f"{contender.name}: {workload.name}"):
                    self._state.put(workload.name, contender.name, {"failure": GIVEN_UP})
                    continue
                if worker is None:
                    self._bench.load_reference()
                    before = used_memory() if todo == taken else None  # what smaller workloads took is not known else
                    worker = self._bench.load(contender)
                    memory = Memory(before)
                cell = self._bench.cell(contender, worker, workload, exact, memory)
                if cell is not None:
                    self._state.put(workload.name, contender.name, cell)
                if cell is None or "failure" in cell:  # of unknown health
                    worker.close()
                    worker = None
            for workload in self._untraced(contender):  # last of all: it slows down what comes after
                worker = worker or self._bench.load(contender)
                self._trace(contender, workload, worker)
        except ReferenceFailedError:
            raise
        except ContenderError as error:
            self._state.leave_out(contender.name, str(error))
            self.say(f"  {error}")
        finally:
            if worker is not None:
                worker.close()

    def _untraced(self, contender: Contender) -> list[Workload]:
        """Single texts that it answered, and whose kernels are not known."""
        cells = {workload: self._state.cell(workload.name, contender.name) for workload in self._workloads}
        return [w for w, cell in cells.items() if w.name in TRACED and "seconds" in cell and "trace" not in cell]

    def _trace(self, contender: Contender, workload: Workload, worker: WorkerProcess) -> None:
        """Which kernels a workload is made of; empty where it cannot be traced."""
        self.begin(f"{contender.name}: kernels of {workload.name}")
        try:
            trace = self._bench.trace(worker, workload)
        except ContenderError as error:
            self.say(f"  {error}")
            trace = {}
        known = self._state.cell(workload.name, contender.name)
        self._state.put(workload.name, contender.name, known | {"trace": trace})

    def _profile(self, contender: Contender) -> None:
        """Where ONNX Runtime runs the nodes of a graph."""
        if contender.name not in self._state.profiles and not self._state.is_out(contender.name):
            self.begin(f"{contender.name}: where its nodes run")
            bundle, file = self._bench.file(contender)
            self._state.profiles[contender.name] = ask_module(
                "benchmarks.gpu.ort_profile", str(bundle / file), self._device
            )
            self._state.save()


def ask_module(module: str, *arguments: str) -> dict[str, Any]:
    """What a module prints in a process of its own, as JSON; ``reason`` where it dies."""
    command = [sys.executable, "-m", module, *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST_MODULE)
    except subprocess.TimeoutExpired:
        return {"reason": f"it took more than {LONGEST_MODULE} s"}
    try:
        answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"reason": last_words(result.returncode, result.stderr)}
    return answer


def main() -> int:
    """Measure what run.py says; the exit code."""
    options = argparse.Namespace(**json.loads(sys.argv[1]))
    try:
        gpu: Device | None = find_gpu()
    except NoGpuError as error:
        if not options.smoke:
            raise SystemExit(f"error: {error}; --smoke runs all of it, small, on the CPU") from error
        gpu = None
    run = Run(options, gpu)
    if options.list:
        run.list()
        return 0
    try:
        run.all()
    except MbexportError as error:
        raise SystemExit(f"error: {error}") from error
    except TimeUpError as error:
        run.say(f"time is up before: {error}; the same command goes on from here")
        return MORE_TO_DO
    finally:
        print(run.page())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
