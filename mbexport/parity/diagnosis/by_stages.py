"""By stages: every one is given the reference's input, wrong ones are taken apart, causes tried out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mbexport.checkpoint.spec import ModelSpec
from mbexport.checkpoint.weights import Weights
from mbexport.parity.diagnosis.causes import UNKNOWN
from mbexport.parity.diagnosis.graph_taps import GraphTaps
from mbexport.parity.diagnosis.hypotheses import hypotheses
from mbexport.parity.diagnosis.scene import Scene, spread_sample
from mbexport.parity.diagnosis.taps import OUTPUTS, Stage, Taps, TapSource, cut, stages_of
from mbexport.parity.diagnosis.values import find_values
from mbexport.parity.diagnosis.words import channels_in_words, tokens_in_words
from mbexport.parity.figures import FloatArray
from mbexport.parity.graphs.packed import packable
from mbexport.parity.report import Diagnosis, Fault, StageError
from mbexport.parity.samples import Case, IntArray

MOST_TOKENS = 4096  # of a case that is searched: the values of all modules are held in memory
# What a stage's own error may be, by precision: what rounding (and the right codes) make it, with room to spare.
OWN_LIMIT = {"fp32": 1e-4, "fp16": 2e-2}
QUANTIZED_LIMIT = 0.25
OUTLIER, OUTLIER_FROM = 8.0, 0.2  # times the median of stages of its kind; from that share of the limit on
ENOUGH_ALIKE = 3  # stages of a kind
MOST_BYTES = 2**30  # of the values inside stages that are searched at once
LARGEST_HALF = 65_504.0
BETTER = 0.1  # share of the error that a cause may leave
SHARE = 1 / 3  # of a stage's error, from which on a part of it counts as its source
SAMPLE, OTHERS = 64, 32
AND = " and "
TINY = 1e-30


def diagnose(
    file: Path,
    precision: str,
    case: Case,
    spec: ModelSpec,
    reference: TapSource,
    weights: Weights | None,
    outputs: tuple[str, ...] | None = None,
) -> Diagnosis | None:
    """Find the stages of a graph that are wrong, and what is wrong with them.

    Args:
        file: the graph.
        precision: as the manifest names it.
        case: an input on which the graph fails.
        spec: the model.
        reference: computes the model as it should be.
        weights: the checkpoint's, for causes that need them; None where there is none.
        outputs: names of the outputs that are compared; None for those that mbexport's graphs have.

    Returns:
        What was found; None where it cannot be told which of the graph's values are which modules' results.

    Raises:
        BackendError: ONNX Runtime cannot run the graph.
    """
    graph = GraphTaps(file, precision, spec, outputs=outputs)
    if not graph.modules:
        values = find_values(file, case, spec, reference)
        graph = GraphTaps(file, precision, spec, outputs=outputs, values=values)
    stages = tuple(stage for stage in stages_of(spec) if _can_be_alone(stage, graph))
    if len(stages) < 3:
        return None
    if graph.packs:
        case = packable(case, None)[0]
    case = cut(case, MOST_TOKENS)
    if isinstance(reference, GraphTaps) and precision == "fp32":
        precision = reference.precision  # what is held against rounded values may be off by their rounding
    search = _Search(graph, precision, case, spec, reference, weights)
    errors = search.stage_errors(stages)
    faults = search.explain([stage for stage, error in zip(stages, errors, strict=True) if error.faulty])
    merged = ranked(_merge(faults), precision)
    inputs = f"{len(case.input_ids)} texts of {case.length} tokens, padding: {', '.join(dict.fromkeys(case.paddings))}"
    unseen = [stage.name for stage in stages_of(spec) if stage not in stages]
    return Diagnosis(inputs, errors, merged, _conclusion(merged, errors) + _unseen_words(unseen))


def _can_be_alone(stage: Stage, graph: GraphTaps) -> bool:
    """Whether a stage can be given the reference's input and its result be seen.

    One whose input is not to be told from other values would be blamed for what goes wrong before it.
    """
    needed = {stage.given, stage.parts[-1], stage.total} - {None, OUTPUTS}
    return needed <= graph.modules


def _unseen_words(unseen: Sequence[str]) -> str:
    if not unseen:
        return ""
    more = f" and {len(unseen) - 1} more" if len(unseen) > 1 else ""
    return f"; what enters or leaves {unseen[0]}{more} could not be told apart from the graph's other values"


@dataclass(frozen=True)
class _Search:
    graph: GraphTaps
    precision: str
    case: Case
    spec: ModelSpec
    reference: TapSource
    weights: Weights | None

    @property
    def limit(self) -> float:
        return OWN_LIMIT.get(self.precision, QUANTIZED_LIMIT)

    def stage_errors(self, stages: Sequence[Stage]) -> tuple[StageError, ...]:
        results = {stage.parts[-1] for stage in stages}
        totals = {stage.total for stage in stages if stage.total}
        given = {stage.given for stage in stages if stage.given}
        expected = self.reference.taps(self.case, results | totals | given)
        whole = self.graph.taps(self.case, results | totals)
        alone = self.graph.taps(self.case, results | totals, {name: expected[name] for name in given})
        scenes = [Scene(self.spec, self.case, stage, expected, None) for stage in stages]
        own = [self._own(scene, alone) for scene in scenes]
        errors = []
        for scene, error in zip(scenes, own, strict=True):
            stage = scene.stage
            alike = [other for it, other in zip(stages, own, strict=True) if it.kind == stage.kind]
            accumulated = self._error(scene, stage.modules[-1], whole)
            errors.append(StageError(stage.name, stage.kind, error, accumulated, self._limit_among(alike)))
        return tuple(errors)

    def _limit_among(self, alike: Sequence[float]) -> float:
        """What a stage's error may be among those of its kind; where values are rounded or codes, no far outlier."""
        if self.precision == "fp32" or len(alike) < ENOUGH_ALIKE:
            return self.limit
        return min(self.limit, max(OUTLIER * float(np.median(alike)), OUTLIER_FROM * self.limit))

    def _own(self, scene: Scene, alone: Taps) -> float:
        """Of the stage's result, and of what it adds up to with the stream."""
        ends = scene.stage.modules[len(scene.stage.parts) - 1 :]
        return max(self._error(scene, module, alone) for module in ends)

    def _error(self, scene: Scene, module: str, found: Taps) -> float:
        return self._size(unit_errors(scene.expected(module), scene.units(found[module])))

    def _size(self, errors: FloatArray) -> float:
        """Of the errors of units, the largest; of codes, which some tokens fit badly by nature, the quadratic mean."""
        return float(errors.max()) if self.precision in OWN_LIMIT else _quadratic_mean(errors)

    def explain(self, stages: Sequence[Stage]) -> list[Fault]:
        """What is wrong with each of some stages; a few at a time, for memory."""
        bytes_of = 4 * self.case.input_ids.size * (8 * self.spec.hidden_size + 3 * self.spec.intermediate_size)
        at_once = max(1, MOST_BYTES // bytes_of)
        faults = []
        for start in range(0, len(stages), at_once):
            some = stages[start : start + at_once]
            given = {stage.given for stage in some if stage.given}
            wanted = given.union(*(self._wanted(stage) for stage in some))
            expected = self.reference.taps(self.case, wanted)
            found = self.graph.taps(self.case, wanted, {name: expected[name] for name in given})
            scenes = [Scene(self.spec, self.case, stage, expected, self.weights) for stage in some]
            faults += [self._explain(scene, found) for scene in scenes]
        return faults

    def _wanted(self, stage: Stage) -> set[str]:
        unnormed = {f"layers.{self.spec.num_layers - 1}.mlp_residual"} if stage.kind == "pooling" else set()
        return {*stage.modules} | unnormed

    def _explain(self, scene: Scene, found: Taps) -> Fault:
        """What is wrong with one stage: with the first of its parts that is off.

        Where values are rounded or codes, that is the first one with a good share of the stage's error.
        """
        stage, last = scene.stage, scene.stage.parts[-1]
        parts = [part for part in stage.modules if part in found]
        pairs = {part: _Pair(scene.expected(part), scene.units(found[part])) for part in parts}
        sizes = {part: self._size(self._errors(stage, part, pairs[part])) for part in parts}
        most = max(sizes[part] for part in parts if part in (last, stage.total))
        least = OUTLIER_FROM * self.limit if self.precision == "fp32" else max(OUTLIER_FROM * self.limit, SHARE * most)
        first = next((part for part in parts if not sizes[part] <= least), last)
        return self._fault(scene, first, pairs[first])

    def _errors(self, stage: Stage, part: str, pair: _Pair) -> FloatArray:
        """Of units, [units]."""
        return unit_errors(pair.right, pair.found / (pair.factors() if self._scales(stage, part) else 1.0))

    def _scales(self, stage: Stage, part: str) -> bool:
        """Whether values may be scaled by channel: inside a stage, where a product behind undoes it; not in FP32."""
        return self.precision != "fp32" and part not in (stage.parts[-1], stage.total)

    def _fault(self, scene: Scene, part: str, pair: _Pair) -> Fault:
        cause = self._cause(scene, part, pair)
        found = pair.found / cause.factors
        errors = unit_errors(pair.right, found)
        bad = ~(errors <= self.limit)
        if not bad.any():
            bad = errors >= errors.max()
        off = np.nan_to_num(np.abs(found[bad] - pair.right[bad]), nan=np.inf)
        heads = self.spec.num_heads if part.endswith(("attended", "Wq", "Wk", "Wv")) else 1
        return Fault(
            (scene.stage.name,), scene.stage.kind, part.rpartition(".")[-1], cause.name, cause.words, cause.evidence,
            tokens_in_words(bad, scene.places, self.case, self.spec.half_window), channels_in_words(off, heads),
        )  # fmt: skip

    def _cause(self, scene: Scene, part: str, pair: _Pair) -> _Cause:
        if not np.isfinite(pair.found).all():
            return _Cause("overflow", _overflow_words(pair))
        if part == scene.stage.total:
            return _Cause("residual", "the stage's result is right, and what it adds up to with its input is not")
        errors = self._errors(scene.stage, part, pair)
        sample = spread_sample(errors, SAMPLE, OTHERS)
        before, found = self._left(errors[sample]), pair.found[sample]
        least, best = self._left_by_gain(pair, sample)
        for hypothesis in hypotheses(scene, part, sample):
            values = hypothesis.values.astype(np.float32)
            if values.shape == found.shape:
                tried = _Pair(values, found)
                left = self._left(self._errors(scene.stage, part, tried))
                if left < least:
                    factors = tried.factors() if self._scales(scene.stage, part) else 1.0
                    least, best = left, _Cause(hypothesis.cause, hypothesis.words, left, factors)
        if least <= min(self.limit, BETTER * before):
            return best
        factors = pair.factors() if self._scales(scene.stage, part) else 1.0
        if self.precision not in OWN_LIMIT:
            words = f"values are off by {before:.0%}: codes, scales or ranges of this part do not fit its values"
            return _Cause("quantization", words, factors=factors)
        words = f"values are off by {before:.2g} of their size; nothing that was tried explains it"
        return _Cause(UNKNOWN, words, factors=factors)

    def _left_by_gain(self, pair: _Pair, sample: IntArray) -> tuple[float, _Cause]:
        """The error that is left if all values are some times what they should be, and that as a cause."""
        gain = float(_gain(pair.right, pair.found))
        left = self._left(unit_errors(np.float32(gain) * pair.right[sample], pair.found[sample])) if gain else np.inf
        return left, _Cause("scale", f"values are {gain:.4g} times what they should be", left)

    def _left(self, errors: FloatArray) -> float:
        """The error of a sample: of the worst unit, or of all together where values are rounded or codes."""
        return float(errors.max() if self.precision == "fp32" else _quadratic_mean(errors))


@dataclass(frozen=True)
class _Pair:
    """The reference's values and the graph's, both [units, width]."""

    right: FloatArray
    found: FloatArray

    def factors(self) -> FloatArray:
        """Of channels: what the graph's values are times the reference's, by least squares; 1 where it says nothing."""
        if not np.isfinite(self.found).all():
            return np.ones(self.found.shape[-1], np.float32)
        factors = _gain(self.right, self.found, axis=0)
        return np.where(np.abs(factors) > TINY, factors, 1.0).astype(np.float32)


@dataclass(frozen=True)
class _Cause:
    """A key of CAUSES, words, the error that it leaves, and the factors of channels that belong with it."""

    name: str
    words: str
    evidence: float | None = None
    factors: FloatArray | float = 1.0


def _gain(right: FloatArray, found: FloatArray, axis: int | None = None) -> Any:
    """The factor that brings ``right`` nearest to ``found``."""
    wide = right.astype(np.float64)
    return (found * wide).sum(axis=axis) / np.maximum((wide * wide).sum(axis=axis), TINY)


def _quadratic_mean(errors: FloatArray) -> float:
    return float(np.sqrt((errors.astype(np.float64) ** 2).mean()))


def unit_errors(expected: FloatArray, found: FloatArray) -> FloatArray:
    """Of each unit: root mean square error over the reference's root mean square there, or overall if that is more.

    Both are [units, width]; the result is [units], infinite where a value is not a number.
    """
    right = expected.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = ((found.astype(np.float64) - right) ** 2).mean(axis=-1)
    sizes = (right**2).mean(axis=-1)
    result: FloatArray = np.sqrt(squares / np.maximum(np.maximum(sizes, sizes.mean()), TINY))
    return np.where(np.isfinite(result), result, np.inf)


def _overflow_words(pair: _Pair) -> str:
    count, largest = int((~np.isfinite(pair.found)).sum()), float(np.abs(pair.right).max())
    words = f"{count} values are no finite numbers; the reference's largest is {largest:.3g}"
    return f"{words}, FP16's largest number is {LARGEST_HALF:,.0f}"


def _merge(faults: Sequence[Fault]) -> tuple[Fault, ...]:
    """Stages with the same fault together, by the first of them."""
    merged: dict[tuple[str, str], Fault] = {}
    for fault in faults:
        key = fault.cause, fault.explanation if fault.evidence is not None else f"{fault.kind} {fault.part}"
        merged[key] = _joined(merged[key], fault) if key in merged else fault
    return tuple(merged.values())


def ranked(faults: Sequence[Fault], precision: str) -> tuple[Fault, ...]:
    """In the order of a report: as they come; beside rounding, which may be called a fault, those with causes first."""
    return tuple(faults) if precision == "fp32" else tuple(sorted(faults, key=lambda fault: fault.cause == UNKNOWN))


def _joined(first: Fault, other: Fault) -> Fault:
    kinds = dict.fromkeys([*first.kind.split(AND), other.kind])
    evidence = _larger(first.evidence, other.evidence)
    return replace(first, stages=first.stages + other.stages, kind=AND.join(kinds), evidence=evidence)


def _larger(first: float | None, second: float | None) -> float | None:
    return first if second is None else second if first is None else max(first, second)


def _conclusion(faults: Sequence[Fault], errors: Sequence[StageError]) -> str:
    if not faults:
        worst = max(errors, key=lambda error: error.own / error.limit)
        return (
            f"no stage is wrong by itself: the largest error that one makes is {worst.own:.1e}, in {worst.name}, where "
            f"{worst.limit:.1e} is allowed"
        )
    first = faults[0]
    of_kind = sum(error.kind == first.kind for error in errors)
    count = f"{first.kind}, {len(first.stages)} of {of_kind} stages" if of_kind > 1 else first.kind
    more = f"; {len(faults) - 1} more fault{'s' if len(faults) > 2 else ''}" if len(faults) > 1 else ""
    return f"the first error is made in {first.stages[0]} ({count}), in {first.part}: {first.explanation}{more}"
