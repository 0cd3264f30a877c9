"""Run the comparison: the reference once, then every graph of the bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mbexport import manifest as manifests
from mbexport.checkpoint.load import Checkpoint
from mbexport.checkpoint.spec import ModelSpec
from mbexport.errors import InputError
from mbexport.files import Progress, to_json, write_atomically
from mbexport.manifest import Check, Graph, Manifest
from mbexport.parity.figures import FloatArray, Terms, compare, units
from mbexport.parity.packed import packable, packed_runner
from mbexport.parity.references import TorchReference, choose_reference
from mbexport.parity.report import GraphParity, ParityReport
from mbexport.parity.rounding import RoundedGraph
from mbexport.parity.samples import TEXTS, Case, IntArray, build_cases, places_of
from mbexport.runtime.backends.ort import OnnxRuntimeBackend
from mbexport.runtime.graphs import NOT_ON_CPU
from mbexport.runtime.text import TextEncoder
from mbexport.texts import Text

REPORT_FILE = "parity.json"
RANDOM_TEXTS, RANDOM_LENGTH = 16, 40


def run_validation(
    bundle: Path,
    checkpoint: Checkpoint,
    *,
    reference: str,
    texts: Sequence[Text] | None,
    max_length: int,
    progress: Progress,
) -> ParityReport:
    """Compare every graph of a bundle; record report and checks in the bundle.

    Args:
        bundle: the bundle.
        checkpoint: what it was exported from.
        reference: one of ``mbexport.options.REFERENCES``.
        texts: what to compare on; None for the set that mbexport brings.
        max_length: no longer inputs than this.
        progress: called after each forward pass.
    """
    if max_length < 1:
        raise InputError(f"max_length is {max_length}, expected 1 or more")
    manifest = manifests.read(bundle)
    manifests.check_files(bundle, manifest)
    if manifest.source.sha256 != checkpoint.weights.sha256():
        raise InputError(
            f"{bundle} was exported from other weights ({manifest.source.name}) than {checkpoint.directory} holds; "
            "name the checkpoint it came from, or export again"
        )
    ids, described = _token_ids(bundle, checkpoint, texts)
    cases = build_cases(ids, _pad_id(checkpoint), checkpoint.spec.half_window, min(max_length, checkpoint.max_length))
    places = [places_of(case, checkpoint.spec) for case in cases]
    reasons = {graph.file: _skip_reason(graph) for graph in manifest.graphs}
    skipped = {file: reason for file, reason in reasons.items() if reason is not None}
    graphs = [graph for graph in manifest.graphs if graph.file not in skipped]
    model = TorchReference(checkpoint, choose_reference(reference))
    done = _Counter(progress, len(cases) * (1 + len(graphs)))
    expected = [done.after(case, places[n], model.run, reference) for n, case in enumerate(cases)]
    error = _reference_error(checkpoint, model, cases, places, expected)
    description = model.description
    del model  # a large one and a graph's session need not stand in memory together

    parities = []
    for graph in graphs:
        run = _graph_runner(bundle, graph, manifest)
        theirs = cases, places, expected
        if graph.packed:
            kept = [packable(case, tokens) for case, tokens in zip(cases, places, strict=True)]
            values = [all_of[units] for all_of, (_, _, units) in zip(expected, kept, strict=True)]
            theirs = [case for case, _, _ in kept], [tokens for _, tokens, _ in kept], values
        found = [done.after(case, tokens, run, graph.file) for case, tokens in zip(*theirs[:2], strict=True)]
        terms = Terms(_predicts(checkpoint.spec), error, is_half=graph.precision == "fp16")
        parities.append(compare(graph.file, *theirs, found, terms))
    passed, longest = all(parity.passed for parity in parities), max(case.length for case in cases)
    report = ParityReport(passed, description, described, longest, tuple(parities), skipped)
    try:
        _record(bundle, manifest, report)
    except OSError:  # a read-only bundle can be validated too
        report = dataclasses.replace(report, recorded=False)
    return report


def _skip_reason(graph: Graph) -> str | None:
    """Why a graph is not compared; None if it is."""
    if graph.needs_gate:
        return (
            f"{graph.precision} is held to limits of its own by mbexport int8, "
            "whose figures are among the manifest's checks"
        )
    return f"ONNX Runtime computes no {graph.precision} on a CPU" if graph.precision in NOT_ON_CPU else None


def _pad_id(checkpoint: Checkpoint) -> int:
    """What stands in padded places, where it must only be an id that exists."""
    stated = checkpoint.config.get("pad_token_id")
    return stated if type(stated) is int and 0 <= stated < checkpoint.spec.vocab_size else 0


Runner = Callable[[Case, IntArray | None], FloatArray]


def _predicts(spec: ModelSpec) -> str | None:
    if spec.task == "question-answering":
        return "units"
    return "outputs" if spec.head is not None and spec.head.outputs > 1 else None


def _graph_runner(bundle: Path, graph: Graph, manifest: Manifest) -> Runner:
    wanted = manifest.answer_outputs
    outputs: Callable[[IntArray, IntArray], Sequence[FloatArray]]
    if graph.precision == "fp16":
        rounded = RoundedGraph(bundle / graph.file)
        outputs = partial(rounded.run, wanted=wanted)
    else:
        backend = OnnxRuntimeBackend(bundle / graph.file, as_written=graph.fused)  # as the runtime loads it
        if graph.selects_tokens:
            return lambda case, places: backend.run(case.input_ids, case.attention_mask, places)["logits"]

        def outputs(ids: IntArray, mask: IntArray) -> Sequence[FloatArray]:
            return list(backend.run(ids, mask, wanted=wanted).values())

    if graph.packed:
        return packed_runner(outputs, manifest)
    return lambda case, places: units(outputs(case.input_ids, case.attention_mask), places)


class _Counter:
    """Reports each forward pass to ``progress``."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def after(self, case: Case, places: IntArray | None, run: Runner, what: str) -> FloatArray:
        values = run(case, places)
        self._done += 1
        self._progress(self._done, self._total, f"{what}, length {case.length}")
        return values


def _token_ids(bundle: Path, checkpoint: Checkpoint, texts: Sequence[Text] | None) -> tuple[list[IntArray], str]:
    if (bundle / "tokenizer.json").is_file():
        encoder = TextEncoder(bundle / "tokenizer.json", checkpoint.max_length)
        encoded = encoder.encode(list(texts if texts is not None else TEXTS))
        usable = [item.ids for item in encoded if len(item.ids)]
        if not usable or max(int(ids.max()) for ids in usable) >= checkpoint.spec.vocab_size:
            raise InputError(
                f"the texts give no tokens, or ids beyond the {checkpoint.spec.vocab_size} rows of the embedding; "
                "the tokenizer is not the model's"
            )
        return usable, f"{len(encoded)} texts"
    if texts is not None:
        raise InputError(f"{bundle} holds no tokenizer.json, so texts cannot be used; leave --data out")
    rng = np.random.default_rng(0)
    ids = rng.integers(0, checkpoint.spec.vocab_size, (RANDOM_TEXTS, RANDOM_LENGTH))
    return list(ids), "random token ids (the bundle has no tokenizer)"


def _reference_error(
    checkpoint: Checkpoint,
    model: TorchReference,
    cases: Sequence[Case],
    places: Sequence[IntArray | None],
    expected: Sequence[FloatArray],
) -> float:
    """How far a half-precision reference is from float32 PyTorch on the same inputs."""
    if not model.is_half:
        return 0.0
    exact = TorchReference(checkpoint, "sdpa")
    values = [exact.run(case, tokens) for case, tokens in zip(cases, places, strict=True)]
    return compare("", cases, places, values, expected, Terms()).overall.max_error


def _record(bundle: Path, manifest: Manifest, report: ParityReport) -> None:
    """Write the report, and a check for each graph that is still the one of ``manifest``, which was compared."""
    (bundle / "reports").mkdir(exist_ok=True)
    write_atomically(bundle / "reports" / REPORT_FILE, report_json(report))

    def checked(current: Manifest) -> Manifest:
        same = {graph.file for graph in current.graphs if graph in manifest.graphs}
        for parity in report.graphs:
            if parity.file in same:
                current = current.with_check(_check(parity, report))
        return current

    manifests.update(bundle, checked)


def _check(parity: GraphParity, report: ParityReport) -> Check:
    overall = parity.overall
    figures = {
        "max_error": overall.max_error,
        "limits": parity.limits,
        "relative_error": overall.relative_error,
        "cosine": overall.cosine,
        "agreement": overall.agreement,
        "rows": overall.rows,
        "longest": report.longest,
    }
    return Check(f"parity of {parity.file}", report.reference, figures, parity.passed)


def report_json(report: ParityReport) -> str:
    """The report as indented JSON."""
    return to_json(report.to_dict()) + "\n"
