"""What is looked for where a graph fails, or on request: the stage where it goes wrong, else what its outputs show."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from mbexport.checkpoint.load import Checkpoint
from mbexport.checkpoint.spec import ModelSpec
from mbexport.errors import BackendError
from mbexport.parity.blackbox import Suspect, explain
from mbexport.parity.diagnosis import UNKNOWN, GraphTaps, TapSource, diagnose
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
        if suspect.refused:
            return explain(suspect, self._spec, checkpoint, self._trying)
        try:
            found = diagnose(
                graph.path, graph.precision, case_to_look_at(suspect), self._spec, self._source,
                None if checkpoint is None else checkpoint.weights, graph.outputs,
            )  # fmt: skip
        except BackendError as cause:
            seen = explain(suspect, self._spec, checkpoint, self._trying)
            return replace(seen, conclusion=f"{seen.conclusion}; its layers could not be looked at: {cause}")
        if found is None:
            return explain(suspect, self._spec, checkpoint, self._trying)
        explained = any(fault.cause != UNKNOWN for fault in found.faults)
        if explained or suspect.parity.passed:
            return found
        seen = explain(
            suspect, self._spec, checkpoint, self._trying
        )  # what comes behind the last layer is seen in outputs only
        return replace(found, faults=seen.faults + found.faults, conclusion=seen.conclusion) if seen.faults else found

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
    """Of the cases that fail, or of all where none does, the longest of up to USUAL tokens; else the shortest."""
    cases = suspect.outputs.cases
    chosen = [cases[number] for number in suspect.failing()] or list(cases)
    short = [case for case in chosen if case.length <= USUAL]
    if not short:
        return min(chosen, key=lambda case: case.length)
    return max(short, key=lambda case: (case.length, case.tokens))
