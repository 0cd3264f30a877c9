"""The measuring process of run.py: makes what is measured, measures what is not known yet, writes after each figure."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu import rtx_targets
from benchmarks.gpu.contenders import EXACT, FALLBACK, REFERENCE, Contender, contenders, workloads
from benchmarks.gpu.exactness import FloatArray, figures_of, judged
from benchmarks.gpu.kit import Kit
from benchmarks.gpu.page import write_page
from benchmarks.gpu.rates import floor_of
from benchmarks.gpu.smi import FACTS, Memory, ask, used_memory
from benchmarks.gpu.state import State
from benchmarks.gpu.turns import take_turns
from benchmarks.gpu.worker import PACKAGES, versions
from mbexport.bench.process import WorkerProcess
from mbexport.bench.workloads import Workload
from mbexport.driver import Device, NoGpuError, find_gpu
from mbexport.errors import ContenderError, MbexportError
from mbexport.parity.report import Figures
from mbexport.processor import processor_name
from mbexport.version import __version__

MORE_TO_DO = 3  # the exit code where --minutes ended it
TRACED = ("1x128", "1x512", "1x8192")  # workloads whose kernels are listed


class Exact(NamedTuple):
    """By workload, PyTorch's logits in FP32, [texts, labels]; and how far off its own FP16 run is, over all of them."""

    logits: dict[str, FloatArray]
    own: Figures


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
        self._reference: Contender | None = None  # once it is known
        self._reference_worker: WorkerProcess | None = None  # stays loaded

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
        self._rates()
        self._rtx_targets()
        chosen = self._chosen()
        exact = self._exact()
        try:
            self._find_reference(exact)
            for contender in chosen:
                self._contender(contender, exact)
                self.page()
        finally:
            if self._reference_worker is not None:
                self._reference_worker.close()
        self._profiles()

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
        worker = WorkerProcess("benchmarks.gpu.worker")
        try:
            rates = worker.ask(do="rates", device=self._device, smoke=self._options.smoke)
        finally:
            worker.close()
        notes = rates.pop("notes")
        self._state.rates, self._state.notes["rates"] = rates, notes
        self._state.save()

    def _rtx_targets(self) -> None:
        """Which engines of TensorRT-RTX load here."""
        if "tensorrt-rtx" in versions(("tensorrt-rtx",)):
            bundle, _ = self._kit.file(Contender("", "graph", "fp16"))
            for target in rtx_targets.TARGETS:
                if target not in self._state.rtx_targets:
                    self.begin(f"TensorRT-RTX for {target}: does it load here?")
                    found = ask_module("benchmarks.gpu.rtx_targets", str(bundle), target)
                    self._state.rtx_targets[target] = found
                    self._state.save()
        loading = [target for target, found in self._state.rtx_targets.items() if found.get("loads")]
        names = [rtx_targets.NAMES[target] for target in reversed(loading) if target in rtx_targets.NAMES]
        self._kit.rtx_names = names  # the newest target first

    def _file(self, workload: Workload) -> Path:
        """The workload as workers read it."""
        file = self._work / f"{workload.name}.npz"
        if not file.exists():
            workload.save(file)
        return file

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
            worker = self._load(Contender(name, "sdpa", precision))
            part, alone = self._work / "part.npy", self._work / "alone.npz"
            for workload in todo:
                self.begin(f"PyTorch in {precision}, which answers are compared with: {workload.name}")
                replace(workload, batch=1).save(alone)
                try:
                    worker.ask(do="run", workload=str(alone), outputs=str(part))
                    part.replace(files[workload.name])
                except ContenderError as error:
                    self.say(f"  {workload.name} is left out: {error}")
            worker.close()
        return {name: np.load(file) for name, file in files.items() if file.exists()}

    def _load(self, contender: Contender) -> WorkerProcess:
        """A contender's process, loaded; what it says of itself is noted.

        Raises:
            ContenderError: it cannot be had, or not loaded.
        """
        bundle, file = self._kit.file(contender) if contender.is_ours else (None, None)
        worker = WorkerProcess("benchmarks.gpu.worker")
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

    def _find_reference(self, exact: Exact) -> None:
        """Which one others take turns with: unpadded PyTorch with FlashAttention where it runs, else SDPA."""
        by_name = {contender.name: contender for contender in self._contenders}
        for name in (REFERENCE, FALLBACK):
            self._contender(by_name[name], exact)
            if not self._state.is_out(name):
                self._reference = by_name[name]
                return
        raise SystemExit("error: neither FlashAttention nor SDPA of PyTorch runs here; see the lines above")

    def _others(self) -> list[WorkerProcess]:
        """The reference's process, loaded; none while it is not known who that is."""
        if self._reference is None:
            return []
        if self._reference_worker is None:
            self.begin(f"loading {self._reference.name}, which others take turns with")
            self._reference_worker = self._load(self._reference)
        return [self._reference_worker]

    def _contender(self, contender: Contender, exact: Exact) -> None:
        """All workloads of a contender that are not known yet, in turns with the reference once that is known."""
        todo = [w for w in self._workloads if contender.takes(w) and not self._state.cell(w.name, contender.name)]
        if not todo or self._state.is_out(contender.name):
            return
        others = self._others()
        self.begin(f"loading {contender.name}")
        before = used_memory()
        try:
            worker = self._load(contender)
        except MbexportError as error:
            self._state.leave_out(contender.name, str(error))
            self.say(f"  {error}")
            return
        try:
            memory = Memory(before)
            for workload in todo:
                self.begin(f"  {workload.name}")
                cell = self._cell(contender, [*others, worker], workload, exact, memory)
                self._state.put(workload.name, contender.name, cell)
        finally:
            worker.close()

    def _cell(
        self, contender: Contender, workers: Sequence[WorkerProcess], workload: Workload, exact: Exact, memory: Memory
    ) -> dict[str, Any]:
        """The figures of the last worker, a contender, on one workload; a failure is one, and ends nothing."""
        outputs = self._work / "outputs.npy"
        request = {"do": "run", "workload": str(self._file(workload)), "outputs": str(outputs)}
        try:
            for other in workers[:-1]:
                other.ask(**request)
            with memory:
                workers[-1].ask(**request)
            parity = judged(exact.logits[workload.name], np.load(outputs), contender.precision, exact.own)
            cell = {"parity": parity, "memory": memory.taken, **take_turns(workers)}
            cell["against"] = self._reference.name if self._reference is not None else contender.name
            floor = floor_of(self._kit.size(), workload, contender.precision, self._state.rates)
            if floor is not None:
                cell["floor"] = asdict(floor) | {"share": floor.seconds / cell["seconds"]}
            if workload.name in TRACED:
                cell["trace"] = workers[-1].ask(do="trace")
        except (ContenderError, ValueError) as error:
            self.say(f"    {error}")
            return {"failure": str(error)}
        return cell

    def _profiles(self) -> None:
        """Where ONNX Runtime runs the nodes of our graphs."""
        for contender in self._contenders:
            if contender.kind == "graph" and not contender.captured and contender.name not in self._state.profiles:
                self.begin(f"profiling {contender.name}")
                bundle, file = self._kit.file(contender)
                found = ask_module("benchmarks.gpu.ort_profile", str(bundle / file), self._device)
                self._state.profiles[contender.name] = found
                self._state.save()


def ask_module(module: str, *arguments: str) -> dict[str, Any]:
    """What a module prints in a process of its own, as JSON; ``reason`` where it dies."""
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        words = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {"reason": f"its process ended with code {result.returncode}: {words[:300]}"}
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
