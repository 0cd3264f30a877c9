"""A contender's own process on the GPU: JSON requests on standard input, one JSON answer a line.

    {"do": "load", "contender": {...}, "checkpoint": DIR, "bundle": DIR, "file": NAME or null, "device": "cuda"}
                                                        {"description", "versions", "notes"}
    {"do": "run", "workload": FILE, "outputs": FILE}    {}                   the first run of a workload
    {"do": "repeat", "seconds": S, "least": N}          {"seconds": [...]}   more runs of it
    {"do": "trace"}                                     what benchmarks.gpu.trace sums up
    {"do": "rates", "device": "cuda", "smoke": false}   what benchmarks.gpu.rates measures

Times are of whole answers: token ids on the host to outputs on the host.
"""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.contenders import Contender
from mbexport import manifest as manifests
from mbexport.bench.engines import Engine, RuntimeEngine
from mbexport.bench.worker import serve, timed
from mbexport.bench.workloads import Workload
from mbexport.runtime.backends.interface import Backend
from mbexport.runtime.backends.ort import CPU, CUDA, OnnxRuntimeBackend
from mbexport.runtime.batches import Limits, token_budget
from mbexport.runtime.model import Model
from mbexport.runtime.on_gpu import InTurn
from mbexport.runtime.text import bundle_encoder

PACKAGES = ("numpy", "onnxruntime-gpu", "onnxruntime", "tensorrt-rtx", "tensorrt", "cuda-bindings")


class OwnEngine(RuntimeEngine):
    """mbexport's runtime on one graph or engine of a bundle, whatever ``load`` would choose.

    Args:
        bundle: the bundle.
        file: the graph or the engine.
        device: ``cuda`` or ``cpu``.
    """

    packages: tuple[str, ...] = PACKAGES

    def __init__(self, bundle: Path, file: str, device: str) -> None:
        manifest = manifests.read(bundle)
        engine = next((engine for engine in manifest.engines if engine.file == file), None)
        backend: Backend
        if engine is not None:
            from mbexport.runtime.backends.tensorrt import TensorRTBackend

            tensorrt = TensorRTBackend(bundle, engine)
            backend, limits = tensorrt, tensorrt.limits
        else:
            graph = next(graph for graph in manifest.graphs if graph.file == file)
            provider = CUDA if device == "cuda" else CPU
            backend = OnnxRuntimeBackend(bundle / file, as_written=graph.fused, provider=provider)
            limits = Limits(tokens=token_budget(map(backend.width, backend.per_token)))
        self._model = Model(manifest, bundle_encoder(bundle, manifest), InTurn(backend, limits))
        self.description = self._model.description


class Worker:
    """Answers requests; holds what was loaded."""

    _engine: Engine
    _device: str
    _prepared: Any

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request."""
        match request["do"]:
            case "load":
                return self._load(request)
            case "run":
                return self._run(Path(request["workload"]), request["outputs"])
            case "repeat":
                return {"seconds": self._repeat(request["seconds"], request["least"])}
            case "trace":
                from benchmarks.gpu.trace import trace

                return trace(lambda: self._engine.run(self._prepared), self._device)
            case _:
                from benchmarks.gpu.rates import measure_rates

                return measure_rates(request["device"], smoke=request["smoke"])

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        contender, device = Contender(**request["contender"]), request["device"]
        engine: Any
        if contender.captured:
            from benchmarks.gpu.ort_graphs import GraphedEngine

            bundle = Path(request["bundle"])
            engine = GraphedEngine(bundle / request["file"], len(manifests.read(bundle).labels or ()), device)
        elif contender.is_ours:
            engine = OwnEngine(Path(request["bundle"]), request["file"], device)
        else:
            from benchmarks.gpu.pytorch import SdpaEngine, UnpaddedEngine

            kind = UnpaddedEngine if contender.kind == "unpadded" else SdpaEngine
            engine = kind(request["checkpoint"], contender.precision, device, contender.compiled)
        self._engine, self._device = engine, device
        notes = getattr(engine, "notes", {})
        return {"description": engine.description, "versions": versions(engine.packages), "notes": notes}

    def _run(self, file: Path, outputs: str) -> dict[str, Any]:
        workload = Workload.load(file)
        self._prepared = self._engine.prepare(workload)
        _, rows = self._engine.outputs(workload, self._engine.run(self._prepared))
        np.save(outputs, np.stack(rows))
        return {}

    def _repeat(self, seconds: float, least: int) -> list[float]:
        """Seconds of each run: for so long, and at least so often."""
        end, taken = time.perf_counter() + seconds, []
        while len(taken) < least or time.perf_counter() < end:
            taken.append(timed(self._engine, self._prepared)[0])
        return taken


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # noqa: PERF203 (a handful)
            continue
    if "onnxruntime-gpu" in found:  # it hides the other, which may be there, too
        found.pop("onnxruntime", None)
    return found


if __name__ == "__main__":
    serve(Worker().answer)
