"""Graphs run on samples, and what they answer held against the FP32 graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mbexport.manifest import Manifest
from mbexport.parity.figures import units
from mbexport.parity.graphs.memory import MemoryGraph
from mbexport.parity.graphs.rounding import with_barriers
from mbexport.quantize.quality import Quality, measure
from mbexport.quantize.samples import Sample
from mbexport.runtime.heads import pool

FloatArray = npt.NDArray[np.float32]
Tick = Callable[[str], None]  # called after each text, with what it was for


class Judge:
    """Holds what the FP32 graph answers to some samples, and compares.

    Args:
        manifest: the bundle's.
        folder: that the weights of graphs lie in.
        samples: the texts.
        exact: the FP32 graph.
        tick: called after each text.
    """

    def __init__(
        self, manifest: Manifest, folder: Path, samples: Sequence[Sample], exact: ir.Model, tick: Tick
    ) -> None:
        self._manifest = manifest
        self._folder = folder
        self._samples = samples
        self._tick = tick
        self._expected = self._run(exact, "FP32")

    def quality(self, model: ir.Model, what: str) -> Quality:
        """Of a graph, whose values are rounded as their types say; ``what`` is for progress."""
        labels = [sample.label for sample in self._samples]
        return measure(self._manifest, self._expected, self._run(with_barriers(model), what), labels)

    def _run(self, model: ir.Model, what: str) -> list[FloatArray]:
        session = MemoryGraph(model, self._folder)
        outputs = []
        for sample in self._samples:
            outputs.append(self._answer(session, sample))
            self._tick(what)
        return outputs

    def _answer(self, session: MemoryGraph, sample: Sample) -> FloatArray:
        """[units, outputs]: a unit is the text, or one of its tokens."""
        manifest, ids = self._manifest, sample.ids[None]
        values = units(session.run(ids, np.ones_like(ids), manifest.answer_outputs), sample.places)
        if manifest.task == "feature-extraction" and manifest.sentence is None and manifest.pooling is not None:
            return pool(values, manifest.pooling)[None]
        return values
