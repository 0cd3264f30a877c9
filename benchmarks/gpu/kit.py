"""What is measured, made on the spot and kept: a checkpoint from a seed, its bundles, graphs and engines."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from benchmarks.gpu.contenders import BUILDERS, Contender
from benchmarks.peers import base_checkpoint
from mbexport import build_engine, export_onnx
from mbexport import manifest as manifests
from mbexport.bench.arithmetic import ModelSize, model_size
from mbexport.bench.workloads import HIGHEST_ID, LOWEST_ID, Maker
from mbexport.bundle.engine_graph import ensure_engine_graph
from mbexport.driver import Device
from mbexport.engines.gpus import GPUS, RTX_TARGETS
from mbexport.errors import ContenderError
from mbexport.files import no_progress
from mbexport.manifest import Engine
from mbexport.quantize.run import Options, quantize
from mbexport.runtime.engines import installed_version
from mbexport.runtime.text import bundle_encoder
from mbexport.texts import Example

EXAMPLE = Path("examples/news_topics/checkpoint")
WITHOUT = "rtx4090"  # it has all precisions
CALIBRATION, HELD_OUT, LENGTH = 48, 16, 128  # texts of random tokens, for INT8 and FP8


class Kit:
    """Files of one model below a folder.

    Args:
        work: the folder.
        gpu: whose engines are built; None where there is none: then those of WITHOUT.
        smoke: the trained example in the place of the base size.
        say: told what is done.
    """

    def __init__(self, work: Path, gpu: Device | None, *, smoke: bool, say: Callable[[str], None]) -> None:
        self._work, self._gpu, self._smoke, self._say = work, gpu, smoke, say
        self.checkpoint = EXAMPLE.resolve() if smoke else work / "checkpoint"
        if not self.checkpoint.exists():
            base_checkpoint(work / "checkpoint.part").replace(self.checkpoint)
        self.rtx_names: list[str] = []  # GPUs for which TensorRT-RTX's engines were seen to load here, best first

    def bundle(self, builder: str = "tensorrt-rtx") -> Path:
        """The bundle that holds a builder's engines; all have the same graphs."""
        bundle = self._work / f"bundle-{builder}"
        if not (bundle / "mbexport.json").exists():
            self._say(f"exporting to {bundle}")
            shutil.rmtree(bundle, ignore_errors=True)
            export_onnx(self.checkpoint, bundle, packed=True)
        return bundle

    @cached_property
    def size(self) -> ModelSize:
        """For the floor."""
        return model_size(self.bundle(), manifests.read(self.bundle()))

    def maker(self) -> Maker:
        """Of workloads for this model."""
        size = self.size
        return Maker(min(size.vocab_size, 3000) if self._smoke else size.vocab_size, size.pad_id)

    def file(self, contender: Contender) -> tuple[Path, str]:
        """The bundle, and the graph or engine in it that a contender runs; made now if it is not there.

        Raises:
            ContenderError: it cannot be had here; says why.
            MbexportError: it cannot be made.
        """
        if contender.kind == "graph":
            return self.bundle(), self._graph(contender)
        builder = str(contender.builder)
        if installed_version(builder) is None:
            raise ContenderError(f"{builder} is not installed")
        bundle = self.bundle(builder)
        engine = self._engine(bundle, contender)
        if engine is None:
            self._say(f"building {contender.name}")
            name = self.gpu_name(builder, contender.precision)
            if contender.precision in ("int8", "fp8"):
                self._quantize(bundle)
            (report,) = build_engine(
                bundle, gpu=name, precision=contender.precision, builder=builder, packed=contender.packed
            )
            engine = report.engine
        return bundle, engine.file

    def _graph(self, contender: Contender) -> str:
        bundle = self.bundle()
        if contender.for_engines or contender.precision != "fp32":
            return ensure_engine_graph(bundle, contender.precision, packed=contender.packed).file
        graphs = [graph for graph in manifests.read(bundle).graphs if graph.precision == "fp32"]
        return next(
            graph.file for graph in graphs if bool(graph.packed) == contender.packed and (graph.packed or graph.fused)
        )

    def _engine(self, bundle: Path, contender: Contender) -> Engine | None:
        """One that was built before, of the graph that is still the bundle's."""
        manifest = manifests.read(bundle)
        for engine in manifest.engines:
            if (engine.precision, bool(engine.packed)) == (contender.precision, contender.packed):
                return engine if manifest.origin(engine) is not None else None
        return None

    def gpu_name(self, builder: str, precision: str) -> str:
        """Which GPU's engine to build: this one's, or of TensorRT-RTX one that was seen to load on it.

        Raises:
            ContenderError: none of TensorRT-RTX's engines loads here.
        """
        if self._gpu is None:
            return WITHOUT
        if builder == "tensorrt":
            return "auto"
        own = [
            name for name, gpu in GPUS.items()
            if gpu.capability_text == self._gpu.compute_capability and gpu.compute_capability in RTX_TARGETS
        ]  # fmt: skip
        names = own or [name for name in self.rtx_names if precision in GPUS[name].precisions]
        if not names:
            raise ContenderError(
                f"{BUILDERS[builder]} builds no {precision} engine that loads on {self._gpu.name} "
                f"(compute capability {self._gpu.compute_capability}); see what was tried"
            )
        return names[0]

    def _quantize(self, bundle: Path) -> None:
        """INT8 and FP8 graphs, calibrated with random tokens, which is enough for speed and tells little of quality."""
        if any(graph.precision == "int8" for graph in manifests.read(bundle).graphs):
            return
        self._say("calibrating INT8")
        encoder, highest = bundle_encoder(bundle, manifests.read(bundle)), min(HIGHEST_ID, self.maker().vocab_size)
        random = np.random.default_rng(0)
        texts = [
            Example("".join(map(encoder.decode, ids)))
            for ids in random.integers(LOWEST_ID, highest, (CALIBRATION + HELD_OUT, LENGTH)).tolist()
        ]
        options = Options(max_length=LENGTH, search=False)
        quantize(bundle, texts[:CALIBRATION], texts[CALIBRATION:], options, no_progress)
