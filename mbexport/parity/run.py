"""Run the comparison: the reference once, then every graph of the subject, then the search where one fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mbexport.checkpoint.load import Checkpoint
from mbexport.errors import BackendError, InputError
from mbexport.files import Progress
from mbexport.options import DEFAULT_MAX_LENGTH
from mbexport.parity.described import TOKENIZER, Described, home_of, of_checkpoint, of_graphs, reconciled
from mbexport.parity.diagnosis.by_outputs import Suspect
from mbexport.parity.diagnosis.search import Search
from mbexport.parity.environment import environment
from mbexport.parity.expected import Reference, by_graph, by_pytorch
from mbexport.parity.figures import FloatArray, Outputs, compare
from mbexport.parity.graphs.packed import packable
from mbexport.parity.graphs.runners import Counter, Foreign, Runner, graph_runner
from mbexport.parity.inputs import Inputs, make_inputs, predicts
from mbexport.parity.limits import Terms
from mbexport.parity.record import record
from mbexport.parity.report import GraphParity, ParityReport
from mbexport.parity.subjects import Subject, SubjectGraph, most_exact, open_subject
from mbexport.texts import Text


@dataclass(frozen=True)
class Options:
    """How to compare.

    Attributes:
        reference: PyTorch's attention, one of ``mbexport.options.REFERENCES``.
        texts: what to compare on; None for the set that mbexport brings.
        max_length: no longer inputs than this.
        bisect: look into every graph, not only into a bundle's FP16 ones and those that fail; and into quantized ones.
    """

    reference: str = "auto"
    texts: Sequence[Text] | None = None
    max_length: int = DEFAULT_MAX_LENGTH
    bisect: bool = False


def run_validation(path: Path, origin: Checkpoint | Path, options: Options, progress: Progress) -> ParityReport:
    """Compare every graph of a subject; record report and checks in a bundle that was held against PyTorch.

    Args:
        path: the subject: a bundle, a directory of graphs, or an ONNX file.
        origin: the checkpoint that it was exported from; or another bundle, directory or file.
        options: how to compare.
        progress: called after each forward pass.

    Raises:
        InputError: other weights, another model, or nothing that can be compared.
        BundleError: a bundle is damaged.
        BackendError: ONNX Runtime refuses a graph.
    """
    if isinstance(origin, Checkpoint):
        model, notes = of_checkpoint(origin), list[str]()
    else:
        model, notes = reconciled(of_graphs(origin), of_graphs(path))
    subject = open_subject(path, model.spec, bisect=options.bisect)
    if isinstance(origin, Checkpoint):
        _check_weights(subject, origin)
    inputs = make_inputs(model, _tokenizers(path, model), options.texts, options.max_length)
    comparison = _Comparison(model, subject, inputs, Counter(progress))
    parities = comparison.run(origin, options)
    report = ParityReport(
        passed=all(parity.passed for parity in parities),
        reference=comparison.reference.description,
        texts=inputs.described,
        longest=inputs.longest,
        graphs=parities,
        skipped=subject.skipped,
        recorded=False,
        subject=str(path),
        half=comparison.reference.own,
        environment=environment(with_pytorch=isinstance(origin, Checkpoint)),
        notes=(*notes, *inputs.notes),
    )
    return _recorded(subject, report) if isinstance(origin, Checkpoint) else report


class _Comparison:
    """The graphs of a subject against one reference.

    Attributes:
        reference: what they are held against, once :meth:`run` has begun.
    """

    reference: Reference

    def __init__(self, model: Described, subject: Subject, inputs: Inputs, done: Counter) -> None:
        self._subject, self._inputs, self._done = subject, inputs, done
        self._spec = model.spec
        self._terms = Terms(predicts(model.spec), labels=model.labels, texts=inputs.texts)

    def run(self, origin: Checkpoint | Path, options: Options) -> tuple[GraphParity, ...]:
        """What was found of each graph."""
        graphs = self._subject.graphs
        if isinstance(origin, Checkpoint):
            needs_half = any(graph.precision == "fp16" for graph in graphs)
            self.reference = by_pytorch(
                origin, self._inputs, self._terms, options.reference, self._done, needs_half=needs_half
            )
            search = Search(self._spec, origin, self._done)
        else:
            other = open_subject(origin, self._spec, bisect=False)
            exact = most_exact(other)
            self.reference = by_graph(other, exact, self._inputs, self._done)
            search = Search(self._spec, exact, self._done)
        self._done.expect(len(graphs) * len(self._inputs.cases))
        return tuple(self._judged(graph, search, bisect=options.bisect) for graph in graphs)

    def _judged(self, graph: SubjectGraph, search: Search, *, bisect: bool) -> GraphParity:
        outputs, refused = self._answers(graph)
        parity = compare(graph.file, outputs, self._terms_of(graph))
        # Of outputs, a window off by one may cost less than rounding does; of stages it costs thirty times as much.
        is_own_half = graph.precision == "fp16" and not graph.is_foreign
        if parity.passed and not bisect and not is_own_half:
            return parity
        diagnosis = search.look(graph, Suspect(outputs, parity, refused))
        passed = parity.passed and not any(stage.faulty for stage in diagnosis.stages)
        return dataclasses.replace(parity, diagnosis=diagnosis, passed=passed)

    def _answers(self, graph: SubjectGraph) -> tuple[Outputs, dict[int, str]]:
        """A graph's outputs beside those expected, and what ONNX Runtime said of inputs that it failed on."""
        cases, places, expected = self._inputs.cases, self._inputs.places, self.reference.expected
        if graph.is_packed:
            kept = [packable(case, tokens) for case, tokens in zip(cases, places, strict=True)]
            expected = [all_of[units] for all_of, (_, _, units) in zip(expected, kept, strict=True)]
            cases, places = [case for case, _, _ in kept], [tokens for _, tokens, _ in kept]
        run = self._runner(graph)
        foreign = Foreign(graph, run)
        found = []
        for case, tokens, values in zip(cases, places, expected, strict=True):
            found.append(foreign.run(case, tokens, values) if graph.is_foreign else run(case, tokens))
            self._done.tick(graph.file, case)
        return Outputs(cases, places, expected, found), foreign.refused

    def _runner(self, graph: SubjectGraph) -> Runner:
        """What runs a graph; somebody else's that is not taken stops not the comparison of those beside it."""
        try:
            return graph_runner(graph, self._subject.manifest)
        except BackendError as cause:
            if not graph.is_foreign or len(self._subject.graphs) == 1:
                raise
            refusal = cause

        def refused(*_: object) -> FloatArray:
            raise refusal

        return refused

    def _terms_of(self, graph: SubjectGraph) -> Terms:
        reference = self.reference
        return dataclasses.replace(
            self._terms,
            precision=graph.precision,
            is_half=reference.is_half or graph.precision == "fp16",
            reference_error=reference.error,
            own=reference.own,
            is_judged=not graph.is_quantized,
        )


def _check_weights(subject: Subject, checkpoint: Checkpoint) -> None:
    """Refuse a bundle of other weights; of somebody else's graph nobody says what it was made of."""
    manifest = subject.manifest
    if manifest is not None and manifest.source.sha256 != checkpoint.weights.sha256():
        raise InputError(
            f"{subject.path} was exported from other weights ({manifest.source.name}) than {checkpoint.directory} "
            "holds; name the checkpoint it came from, or export again"
        )


def _tokenizers(subject: Path, model: Described) -> list[Path]:
    """Files of tokenizers: the subject's, and that of what it is held against."""
    own = home_of(subject) / TOKENIZER
    files = [own] if own.is_file() else []
    return files if model.tokenizer is None else [*files, model.tokenizer]


def _recorded(subject: Subject, report: ParityReport) -> ParityReport:
    """The report, which says whether it could be written into the bundle; into others' directories nothing is."""
    if subject.manifest is None:
        return report
    try:
        report = dataclasses.replace(report, recorded=True)
        record(subject.path, subject.manifest, report)
    except OSError:  # a read-only bundle can be validated too
        return dataclasses.replace(report, recorded=False)
    return report
