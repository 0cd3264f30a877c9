"""What is looked for where a graph fails, or on request: the stage where it goes wrong, else what its outputs show."""

from __future__ import annotations

from functools import cached_property

from mbexport.checkpoint.load import Checkpoint
from mbexport.checkpoint.spec import ModelSpec
from mbexport.parity.blackbox import Suspect, explain
from mbexport.parity.diagnosis import GraphTaps, TapSource, TorchTaps, diagnose
from mbexport.parity.report import Diagnosis
from mbexport.parity.runners import Counter
from mbexport.parity.samples import Case
from mbexport.parity.subjects import SubjectGraph

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
        """Where a graph goes wrong, or that it does not."""
        checkpoint = self._reference if isinstance(self._reference, Checkpoint) else None
        if not suspect.refused:
            case = case_to_look_at(suspect)
            weights = None if checkpoint is None else checkpoint.weights
            found = diagnose(
                graph.path, graph.precision, case, self._spec, self._source, weights, runs_packed=graph.is_packed
            )
            if found is not None:
                return found
        return explain(suspect, self._spec, checkpoint, self._trying)

    def _trying(self, case: Case) -> None:
        self._done.expect(1)
        self._done.tick("trying other settings", case)

    @cached_property
    def _source(self) -> TapSource:
        if isinstance(self._reference, Checkpoint):
            return TorchTaps(self._reference)
        return GraphTaps(self._reference.path, self._reference.precision)


def case_to_look_at(suspect: Suspect) -> Case:
    """The failing case with the fewest tokens; of a graph that holds, the one of USUAL tokens or the longest below."""
    cases, failing = suspect.outputs.cases, suspect.failing()
    if failing:
        return cases[failing[0]]
    short = [case for case in cases if case.length <= USUAL]
    if not short:
        return min(cases, key=lambda case: case.length)
    return max(short, key=lambda case: (case.length, case.tokens))
