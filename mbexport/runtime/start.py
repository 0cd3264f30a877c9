"""What a bundle runs on: an engine, ONNX Runtime's CUDA provider or the CPU, and why not the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from mbexport.errors import BundleError, InputError
from mbexport.manifest import Graph, Manifest
from mbexport.runtime.backends.interface import Backend
from mbexport.runtime.backends.ort import has_cuda
from mbexport.runtime.cores import Cores
from mbexport.runtime.schedule import Run

NOT_ON_CPU = frozenset({"bf16"})  # precisions that ONNX Runtime has no kernels of there
T = TypeVar("T")


class Executor(Protocol):
    """A backend, and how texts are spread over runs of it. Safe to call from several threads."""

    @property
    def all(self) -> Backend:
        """The backend, with all that the machine gives it."""

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
    """Load the best that runs here.

    Raises:
        BundleError: no graph of the precision, or an engine that is not the manifest's.
        InputError: a GPU is asked for, or needed for the precision, and there is none.
        BackendError: ONNX Runtime refuses the graph.
    """
    if wish.device == "cuda" or (wish.device == "auto" and (manifest.engines or has_cuda())):
        from mbexport.runtime.on_gpu import start_on_gpu

        executor = start_on_gpu(bundle, manifest, wish)
        if executor is not None:
            return executor
    graph = cpu_graph(bundle, manifest, wish.precision)
    return Cores(bundle / graph.file, wish.threads, as_written=graph.fused, share=wish.share_cores)


def cpu_graph(bundle: Path, manifest: Manifest, precision: str, reasons: Sequence[str] = ()) -> Graph:
    """The graph of a precision that runs on the CPU.

    Args:
        bundle: the bundle.
        manifest: its manifest.
        precision: the precision, or ``auto``.
        reasons: why the GPU is not used, where there are some.

    Raises:
        BundleError: there is none of the precision.
        InputError: the precision needs a GPU.
    """
    graph = choose_graphs(bundle, manifest, precision, reasons)[0]
    if graph.precision in NOT_ON_CPU:
        here = " or ".join(sorted({graph.precision for graph in manifest.graphs} - NOT_ON_CPU)) or "none that it has"
        message = f"{bundle}: precision is {precision!r}, which needs a GPU; on the CPU load it in {here}"
        raise InputError("; ".join([message, *reasons]))
    return graph


def choose_graphs(bundle: Path, manifest: Manifest, precision: str, reasons: Sequence[str] = ()) -> list[Graph]:
    """The graphs of a precision, FP32 for ``auto``, the one for ONNX Runtime first.

    Args:
        bundle: the bundle.
        manifest: its manifest.
        precision: the precision.
        reasons: why engines of that precision do not run, where there are some.

    Raises:
        BundleError: there is none.
    """
    wanted = "fp32" if precision == "auto" else precision
    graphs = [graph for graph in manifest.graphs if graph.precision == wanted]
    if not graphs:
        have = ", ".join(sorted({graph.precision for graph in manifest.graphs})) or "none"
        raise BundleError("; ".join([f"{bundle} holds no {wanted} graph; it has {have}", *reasons]))
    return sorted(graphs, key=lambda graph: (graph.selects_tokens, graph.fused), reverse=True)
