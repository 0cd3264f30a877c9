"""Loading on a GPU: the engines that fit, then ONNX Runtime's CUDA provider. Each step down is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from mbexport.driver import Device, NoGpuError, find_gpu
from mbexport.errors import BackendError, InputError, MissingExtraError
from mbexport.manifest import Engine, Manifest
from mbexport.options import QUANTIZED
from mbexport.runtime.backends.interface import Backend
from mbexport.runtime.backends.ort import CUDA, OnnxRuntimeBackend
from mbexport.runtime.batches import Limits, plan_batches, token_budget
from mbexport.runtime.engines import choose_engines, doubt_of, installed_version
from mbexport.runtime.fallback import FallbackWarning
from mbexport.runtime.graphs import QualityWarning, choose_graphs, cpu_graph, warning_of
from mbexport.runtime.packing import plan_packed
from mbexport.runtime.schedule import Run
from mbexport.runtime.start import Wish, run_once

CPU_USED = "THE CPU IS USED, not the GPU"
T = TypeVar("T")


class InTurn:
    """A backend on a GPU, which takes runs one after the other.

    Args:
        backend: what runs.
        limits: what may be run at one time.

    Attributes:
        all: the backend.
        batch_tokens: of its largest runs.
    """

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self.all = backend
        self.batch_tokens = limits.tokens
        self._limits = limits

    def plan(self, lengths: Sequence[int]) -> list[Run]:
        """See :func:`plan_batches` and :func:`plan_packed`."""
        return (plan_packed if self.all.packs else plan_batches)(lengths, self._limits)

    def map(self, forward: Callable[[Backend, Run], T], runs: Sequence[Run]) -> Iterator[tuple[Run, T]]:
        """Each run and what ``forward`` makes of it, one after the other."""
        for run in runs:
            yield run, forward(self.all, run)


def start_on_gpu(bundle: Path, manifest: Manifest, wish: Wish) -> InTurn | None:
    """Load the best that this machine's GPU runs; None where the CPU is to be used, which is warned of.

    No GPU under ``device="auto"`` is nothing to warn of: the bundle serves several machines.

    Raises:
        BundleError: an engine that fits is not the manifest's, or nothing of the precision is for this machine.
        InputError: ``device="cuda"``, and there is no GPU; or the precision runs on the GPU only, and not on this one.
    """
    try:
        gpu = find_gpu()
    except BackendError as cause:
        if wish.device == "cuda":
            raise InputError(f"device is 'cuda', and {cause}; load with device='auto' or 'cpu' instead") from cause
        if not isinstance(cause, NoGpuError):
            cpu_graph(bundle, manifest, wish.precision, [str(cause)])  # or the CPU could not be used
            _warn(f"{bundle}: {CPU_USED}; {cause}")
        return None
    reasons: list[str] = []
    executor = _on_engine(bundle, manifest, wish, gpu, reasons) or _on_cuda_provider(bundle, manifest, wish, reasons)
    if executor is None:
        cpu_graph(bundle, manifest, wish.precision, reasons)
    if reasons:
        used = f"{executor.all.description} is used" if executor else CPU_USED
        _warn(f"{bundle} on {gpu.name}: {used}; " + "; ".join(reasons))
    return executor


def _warn(message: str) -> None:
    warnings.warn(message, FallbackWarning, stacklevel=5)  # in the line that called load


def _on_engine(bundle: Path, manifest: Manifest, wish: Wish, gpu: Device, reasons: list[str]) -> InTurn | None:
    """The best engine that loads and runs; adds to ``reasons`` why others do not."""
    choice = choose_engines(manifest, gpu, wish.precision, installed_version)
    for engine in choice.fitting:
        try:
            executor = _load_engine(bundle, manifest, engine)
        except (BackendError, MissingExtraError) as cause:  # noqa: PERF203 (few engines)
            reasons.append(f"{engine.file} does not run: {cause}")
        else:
            fault = doubt_of(engine, manifest)
            if fault is not None:
                warnings.warn(warning_of(bundle / engine.file, fault), QualityWarning, stacklevel=5)
            return executor
    reasons.extend(choice.refused)
    return None


def _load_engine(bundle: Path, manifest: Manifest, engine: Engine) -> InTurn:
    from mbexport.runtime.backends.tensorrt import TensorRTBackend

    backend = TensorRTBackend(bundle, engine)
    try:
        run_once(backend, manifest)
    except BackendError:
        backend.close()  # the next one needs the memory
        raise
    return InTurn(backend, backend.limits)


def _on_cuda_provider(bundle: Path, manifest: Manifest, wish: Wish, reasons: list[str]) -> InTurn | None:
    """The first graph that ONNX Runtime runs on the GPU; adds to ``reasons`` why others do not."""
    if wish.precision in QUANTIZED:  # INT8 graphs are made of operators of its CPU, or for TensorRT
        reasons.append(f"on a GPU {wish.precision} is for engines only, and mbexport trt builds those")
        return None
    for graph in choose_graphs(bundle, manifest, wish.precision, reasons):
        try:
            backend = OnnxRuntimeBackend(bundle / graph.file, wish.threads, as_written=graph.fused, provider=CUDA)
            run_once(backend, manifest)
        except BackendError as cause:  # noqa: PERF203 (two graphs)
            if str(cause) not in reasons:  # of another graph: a library that is missing is missing for all
                reasons.append(str(cause))
        else:
            return InTurn(backend, Limits(tokens=token_budget(map(backend.width, backend.per_token))))
    return None
