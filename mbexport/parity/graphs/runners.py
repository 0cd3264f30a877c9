"""What answers a case: graphs, each as its precision needs it, and the counting of passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mbexport.errors import BackendError, InputError
from mbexport.files import Progress
from mbexport.manifest import Manifest
from mbexport.parity.figures import FloatArray, units
from mbexport.parity.graphs.memory import FileGraph
from mbexport.parity.graphs.packed import packed_runner
from mbexport.parity.graphs.rounding import RoundedGraph
from mbexport.parity.samples import Case, IntArray
from mbexport.parity.subjects import SubjectGraph
from mbexport.runtime.backends.ort import OnnxRuntimeBackend

# From a case and the tokens wanted (None where outputs belong to whole texts) to outputs, [units, outputs].
Runner = Callable[[Case, IntArray | None], FloatArray]
Outputs = Callable[[IntArray, IntArray], Sequence[FloatArray]]


def graph_runner(graph: SubjectGraph, manifest: Manifest | None) -> Runner:
    """What runs a graph on the CPU: FP16 really rounded, all else as it is used.

    Args:
        graph: the graph.
        manifest: of the bundle that it is in.

    Raises:
        BackendError: ONNX Runtime refuses it.
    """
    entry = graph.entry
    if entry is None or entry.dialect == "tensorrt" or entry.precision == "fp16":
        return _as_written(graph, manifest)
    backend = OnnxRuntimeBackend(graph.path, as_written=entry.fused)  # as the runtime loads it
    if entry.selects_tokens:
        return lambda case, places: backend.run(case.input_ids, case.attention_mask, places)["logits"]

    def outputs(ids: IntArray, mask: IntArray) -> Sequence[FloatArray]:
        return list(backend.run(ids, mask, wanted=graph.outputs).values())

    return _units(graph, outputs, manifest)


def _as_written(graph: SubjectGraph, manifest: Manifest | None) -> Runner:
    exact = graph.is_foreign and graph.precision != "fp16"
    session = FileGraph(graph.path) if exact else RoundedGraph(graph.path, is_foreign=graph.is_foreign)
    return _units(graph, lambda ids, mask: session.run(ids, mask, graph.outputs), manifest)


def _units(graph: SubjectGraph, outputs: Outputs, manifest: Manifest | None) -> Runner:
    if graph.is_packed and manifest is not None:
        return packed_runner(outputs, manifest)
    return lambda case, places: units(outputs(case.input_ids, case.attention_mask), places)


class Foreign:
    """A runner of somebody else's graph, which may fail on some inputs: that is a finding, not the end.

    Args:
        graph: the graph.
        runner: what runs it.

    Attributes:
        refused: of the cases that it failed on, what was said, by length.
    """

    def __init__(self, graph: SubjectGraph, runner: Runner) -> None:
        self._graph, self._runner = graph, runner
        self.refused: dict[int, str] = {}

    def run(self, case: Case, places: IntArray | None, expected: FloatArray) -> FloatArray:
        """The outputs; all NaN where the graph failed.

        Raises:
            InputError: an output of another shape than the reference's.
        """
        try:
            found = self._runner(case, places)
        except BackendError as cause:
            self.refused[case.length] = " ".join(str(cause).split())
            return np.full_like(expected, np.nan)
        except (IndexError, ValueError) as cause:  # fewer axes or tokens than outputs of this task have
            raise self._unfit(case, "another number of axes or tokens") from cause
        if found.shape != expected.shape:
            raise self._unfit(case, f"the shape {'x'.join(map(str, found.shape))}")
        return found

    def _unfit(self, case: Case, found: str) -> InputError:
        names, shape = " and ".join(self._graph.outputs or ()), "x".join(map(str, case.input_ids.shape))
        return InputError(f"{self._graph.path}: for an input of shape {shape} {names} has {found}, not the model's")


class Counter:
    """Reports each forward pass to ``progress``."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._total, self._done = progress, 0, 0

    def expect(self, more: int) -> None:
        """So many passes are to come besides those that were said before."""
        self._total += more

    def tick(self, what: str, case: Case) -> None:
        """A pass is done."""
        self._done += 1
        self._progress(self._done, self._total, f"{what}, length {case.length}")
