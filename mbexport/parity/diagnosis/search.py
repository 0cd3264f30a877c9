"""The search where a graph fails, or on request: by its stages, and by its outputs where those say too little."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from mbexport.checkpoint.load import Checkpoint
from mbexport.checkpoint.spec import ModelSpec
from mbexport.errors import BackendError
from mbexport.parity.diagnosis.by_outputs import Suspect, explain, failing_words
from mbexport.parity.diagnosis.by_stages import diagnose
from mbexport.parity.diagnosis.causes import UNKNOWN
from mbexport.parity.diagnosis.graph_taps import GraphTaps
from mbexport.parity.diagnosis.taps import TapSource
from mbexport.parity.graphs.runners import Counter
from mbexport.parity.report import Diagnosis
from mbexport.parity.samples import Case
from mbexport.parity.subjects import SubjectGraph

if TYPE_CHECKING:
    from mbexport.parity.pytorch.reference import TorchReference

SETTINGS = {"theta", "layer pattern"}  # causes that an exporter's misreading of config.json may be behind
USUAL = 257  # tokens that are enough to see windows and blocks of attention in


class Search:
    """Looks into graphs, one after another.

    Args:
        spec: the model that they should compute.
        reference: where its inner values come from: the checkpoint, or the graph that others are held against.
        done: counts the models that are tried.
    """

    def __init__(self, spec: ModelSpec, reference: Checkpoint | SubjectGraph, done: Counter) -> None:
        self._spec, self._reference, self._done = spec, reference, done

    def look(self, graph: SubjectGraph, suspect: Suspect) -> Diagnosis:
        """Where a graph goes wrong, or that it does not: by its stages; by its outputs, where those say too little."""
        by_stages, refusal = self._within(graph, suspect)
        if by_stages is not None:
            causes = {fault.cause for fault in by_stages.faults}
            if suspect.parity.passed or not (causes <= {UNKNOWN} or (graph.is_foreign and causes <= SETTINGS)):
                return by_stages
            if not causes:
                return replace(by_stages, conclusion=f"{by_stages.conclusion}; {_elsewhere(graph, suspect)}")
        by_outputs = explain(suspect, self._spec, self._pytorch, self._trying)
        if by_stages is None:
            return replace(by_outputs, conclusion=by_outputs.conclusion + refusal)
        if not by_outputs.faults:
            return by_stages
        return replace(by_stages, faults=by_outputs.faults + by_stages.faults, conclusion=by_outputs.conclusion)

    def _within(self, graph: SubjectGraph, suspect: Suspect) -> tuple[Diagnosis | None, str]:
        """What the graph's inner values show; None where they cannot be seen, and what prevents it."""
        if suspect.refused:
            return None, ""
        if isinstance(self._source, GraphTaps) and not self._source.modules:
            return None, f": {self._source.file}, the reference, does not say which of its own are"
        weights = self._reference.weights if isinstance(self._reference, Checkpoint) else None
        case = case_to_look_at(suspect)
        try:
            found = diagnose(graph.path, graph.precision, case, self._spec, self._source, weights, graph.outputs)
        except BackendError as cause:
            return None, f"; its inner values could not be looked at: {cause}"
        return found, ""

    def _trying(self, case: Case) -> None:
        self._done.expect(1)
        self._done.tick("trying other settings", case)

    @cached_property
    def _pytorch(self) -> TorchReference | None:
        """The model for all searches: loaded when the first one begins, and not at all without a checkpoint."""
        if not isinstance(self._reference, Checkpoint):
            return None
        from mbexport.parity.pytorch.reference import TorchReference  # --against has no need of PyTorch

        return TorchReference(self._reference, "sdpa")

    @cached_property
    def _source(self) -> TapSource:
        if self._pytorch is None:
            assert not isinstance(self._reference, Checkpoint)
            return GraphTaps(self._reference.path, self._reference.precision, self._spec)
        from mbexport.parity.pytorch.taps import TorchTaps

        return TorchTaps(self._pytorch, self._spec)


def _elsewhere(graph: SubjectGraph, suspect: Suspect) -> str:
    """What is left where all stages of a graph that fails are right."""
    where = failing_words(suspect.parity.inputs, suspect.limit)
    if graph.is_packed:
        return f"they were looked at in rows of one text, so it fails where rows hold several: {where}"
    return f"they were computed as they are written, so it fails in how they are run, or elsewhere: {where}"


def case_to_look_at(suspect: Suspect) -> Case:
    """Of the cases that fail, or of all where none does, the longest of up to USUAL tokens; else the shortest."""
    cases = suspect.outputs.cases
    chosen = [cases[number] for number in suspect.failing()] or list(cases)
    short = [case for case in chosen if case.length <= USUAL]
    if not short:
        return min(chosen, key=lambda case: case.length)
    return max(short, key=lambda case: (case.length, case.tokens))
