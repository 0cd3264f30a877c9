"""What a bundle runs on: an engine, ONNX Runtime's CUDA provider or the CPU, and why not the one before."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from mbexport.errors import BackendError, BundleError
from mbexport.manifest import Manifest
from mbexport.runtime.backends.interface import Backend
from mbexport.runtime.backends.ort import has_cuda
from mbexport.runtime.cores import Cores
from mbexport.runtime.fallback import FallbackWarning
from mbexport.runtime.graphs import QualityWarning, cpu_graph, doubt, warning_of
from mbexport.runtime.prepacked import find_prepacked
from mbexport.runtime.schedule import Run

T = TypeVar("T")


class Executor(Protocol):
    """A backend, and how texts are spread over runs of it. Safe to call from several threads."""

    @property
    def all(self) -> Backend:
        """The backend, with all that the machine gives it."""

    @property
    def batch_tokens(self) -> int:
        """Tokens that keep the device busy: more at a time make a token no cheaper."""

    def plan(self, lengths: Sequence[int]) -> list[Run]:
        """Runs of all texts, from the tokens of each; InputError where a text is too long."""

    def map(self, forward: Callable[[Backend, Run], T], runs: Sequence[Run]) -> Iterator[tuple[Run, T]]:
        """Each run and what ``forward`` makes of it, as they are done."""


@dataclass(frozen=True)
class Wish:
    """What the caller of ``load`` asked for."""

    device: str
    precision: str
    threads: int | None
    share_cores: bool


def start(bundle: Path, manifest: Manifest, wish: Wish) -> Executor:
    """Load the best that runs here; a QualityWarning where no quality gate let it pass.

    Raises:
        BundleError: no graph of the precision that this CPU computes exactly, or an engine that is not the manifest's.
        InputError: a GPU is asked for, or needed for the precision, and there is none.
        BackendError: ONNX Runtime refuses the graph.
    """
    if wish.device == "cuda" or (wish.device == "auto" and (manifest.engines or has_cuda())):
        from mbexport.runtime.on_gpu import start_on_gpu

        executor = start_on_gpu(bundle, manifest, wish)
        if executor is not None:
            return executor
    graph = cpu_graph(bundle, manifest, wish.precision)
    fault = doubt(graph) if graph.needs_gate else None
    if fault is not None:
        warnings.warn(warning_of(bundle / graph.file, fault), QualityWarning, stacklevel=3)  # in load's caller
    prepacked, fault = find_prepacked(bundle, manifest, graph)
    if prepacked is not None:
        try:
            return Cores(prepacked, wish.threads, as_written=True, share=wish.share_cores)
        except BackendError as cause:
            fault = str(cause)
    if fault is not None:
        message = f"{fault}; weights are packed at every start, until they are packed here: mbexport prepack {bundle}"
        warnings.warn(message, FallbackWarning, stacklevel=3)
    return Cores(bundle / graph.file, wish.threads, as_written=graph.fused, share=wish.share_cores)


def check_outputs(bundle: Path, manifest: Manifest, backend: Backend) -> None:
    """Hold the outputs that answers are made of to the task: their names, and whether tokens have some of their own.

    Raises:
        BundleError: the graph is another task's.
    """
    fault = None
    for name in manifest.needed_outputs:
        width, of_tokens = backend.width(name), name in backend.per_token
        if not width:
            fault = f"no {name}"
        elif manifest.task == "multiple-choice" and width != 1:
            fault = f"{width} numbers in {name}, not one"
        elif manifest.task != "fill-mask" and not backend.packs and of_tokens == manifest.pools_texts:
            fault = f"{name} of {'tokens' if of_tokens else 'whole texts'}"
    if fault is not None:
        raise BundleError(f"{bundle}: {backend.description} gives {fault}, the task is {manifest.task}; export again")


def run_once(backend: Backend, manifest: Manifest) -> None:
    """Run a backend on one token: what a device cannot do may show only when it runs.

    Raises:
        BackendError: the forward pass failed.
    """
    one = np.ones((1, 1), np.int64)
    backend.run(one, one, np.zeros(1, np.int64) if manifest.mask_token else None, manifest.answer_outputs)
