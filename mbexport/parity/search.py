"""What is looked for where a graph fails, or on request: the stage where it goes wrong, else what its outputs show."""

from __future__ import annotations

import dataclasses
from functools import cached_property

from mbexport.checkpoint.load import Checkpoint
from mbexport.checkpoint.spec import ModelSpec
from mbexport.parity.blackbox import TELLING, Suspect, explain
from mbexport.parity.diagnosis import GraphTaps, TapSource, diagnose
from mbexport.parity.report import Diagnosis
from mbexport.parity.runners import Counter
from mbexport.parity.samples import Case
from mbexport.parity.subjects import SubjectGraph

UNSETTLED = {"unknown"}  # causes that leave it open why a stage is wrong
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
        """Where a graph goes wrong, or that it does not: by its stages; by its outputs, where those say nothing."""
        checkpoint = self._reference if isinstance(self._reference, Checkpoint) else None
        by_stages = None
        if not suspect.refused:
            weights = None if checkpoint is None else checkpoint.weights
            case = case_to_look_at(suspect)
            by_stages = diagnose(graph.path, graph.precision, case, self._spec, self._source, weights)
        if by_stages is None:
            return explain(suspect, self._spec, checkpoint, self._trying)
        causes = {fault.cause for fault in by_stages.faults}
        if suspect.parity.passed or not (causes <= UNSETTLED or (graph.is_foreign and causes <= SETTINGS)):
            return by_stages
        by_outputs = explain(suspect, self._spec, checkpoint, self._trying)
        if not by_outputs.faults:
            return by_stages
        faults = (*by_outputs.faults, *by_stages.faults)
        return dataclasses.replace(by_stages, faults=faults, conclusion=by_outputs.conclusion)

    def _trying(self, case: Case) -> None:
        self._done.expect(1)
        self._done.tick("trying other settings", case)

    @cached_property
    def _source(self) -> TapSource:
        if not isinstance(self._reference, Checkpoint):
            return GraphTaps(self._reference.path, self._reference.precision, self._spec)
        from mbexport.parity.diagnosis.torch_taps import TorchTaps  # --against has no need of PyTorch
        from mbexport.parity.references import TorchReference

        return TorchTaps(TorchReference(self._reference, "sdpa"), self._spec)


def case_to_look_at(suspect: Suspect) -> Case:
    """The case that stages are told apart by: of those that fail the longest of TELLING tokens at most.

    In short texts different faults are the same: of 66 tokens a window of 65 to either side hides none. Where only
    longer ones fail, the one with the fewest tokens; of a graph that holds, the longest of USUAL tokens at most.
    """
    cases, failing = suspect.outputs.cases, suspect.failing()
    if failing:
        short = [cases[n] for n in failing if cases[n].length <= TELLING]
        return max(short, key=_size) if short else cases[failing[0]]
    short = [case for case in cases if case.length <= USUAL]
    return max(short, key=_size) if short else min(cases, key=_size)


def _size(case: Case) -> tuple[int, int]:
    return case.length, case.tokens
