"""Where a graph's outputs alone can be seen: which inputs fail, and which other model would answer so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mbexport.checkpoint.spec import ModelSpec
from mbexport.parity.diagnosis.taps import OUTPUTS
from mbexport.parity.figures import DoubleArray, FloatArray, Outputs, case_errors
from mbexport.parity.findings import largest_error
from mbexport.parity.report import Diagnosis, Fault, GraphParity, InputFigures
from mbexport.parity.samples import PADDINGS, Case
from mbexport.runtime.heads import scores

if TYPE_CHECKING:
    from mbexport.parity.pytorch.reference import TorchReference

REPRODUCED = 1 / 20  # of the error that the unchanged model leaves, what one that explains it may leave
LENIENT = 2  # times the limit that it must keep, too
LONGEST = 1024  # tokens of inputs that are looked at, unless only longer ones fail
TELLING = 300  # that are enough to tell windows and patterns of layers from one another
PADDING_WORDS = {"none": "none", "right": "on the right", "left": "on the left", "interleaved": "in between"}


@dataclass(frozen=True)
class Suspect:
    """A graph to explain: its outputs, what the comparison found, and the inputs that ONNX Runtime refused."""

    outputs: Outputs
    parity: GraphParity
    refused: dict[int, str]

    @property
    def limit(self) -> float:
        """The largest error that the graph may have; infinite where it is held to none."""
        return self.parity.limits.get("max_error", float("inf"))

    def failing(self) -> list[int]:
        """Numbers of the cases that fail, the fewest tokens first; long ones only where there are no others.

        Where a limit of another kind fails (cosine, predictions), the case with the largest error.
        """
        errors = case_errors(self.outputs)
        failing = [n for n, error in enumerate(errors) if not error <= self.limit]
        if not failing and not self.parity.passed:
            failing = [int(np.argmax(errors))]
        cases = self.outputs.cases
        short = [n for n in failing if cases[n].length <= LONGEST]
        return sorted(short or failing, key=lambda n: cases[n].tokens)


def explain(
    suspect: Suspect, spec: ModelSpec, pytorch: TorchReference | None, tick: Callable[[Case], None]
) -> Diagnosis:
    """The best that outputs alone can say.

    Args:
        suspect: the graph.
        spec: the model that it should compute.
        pytorch: the model in PyTorch, in float32; None where there is none, so that no other model can be tried.
        tick: called before each model that is tried, with the first case.
    """
    failing = suspect.failing()
    where = failing_words(suspect.parity.inputs, suspect.limit)
    unknown = "which of its inner values are which is not known, so that no layer can be named"
    if not failing:
        return Diagnosis(_inputs(suspect, range(len(suspect.outputs.cases))), (), (), f"{where}; {unknown}")
    faults = [_refusal(suspect)] if suspect.refused else []
    answered = [n for n in failing if suspect.outputs.cases[n].length not in suspect.refused]
    looked_at = _looked_at(suspect, answered, spec)
    tried = 0
    if looked_at:
        found, tried = _cause(suspect, looked_at, spec, pytorch, tick)
        faults += [] if found is None else [found]
    if faults:
        conclusion = f"{'; '.join(fault.explanation for fault in faults)} ({where})"
    else:
        models = f"; none of {tried} other settings of the model in PyTorch answers like it" if tried else ""
        conclusion = f"{where}{models}; {unknown}"
    return Diagnosis(_inputs(suspect, looked_at or failing[:1]), (), tuple(faults), conclusion)


def failing_words(inputs: Sequence[InputFigures], limit: float) -> str:
    """Which inputs fail, in words: from which length on, and with which padding.

    Args:
        inputs: of the comparison.
        limit: the largest error that an input may have.
    """
    failing = [item for item in inputs if not item.max_error <= limit]
    if not failing:
        return f"no input of {len(inputs)} has an error beyond the limit" if np.isfinite(limit) else "all are answered"
    shortest = min(item.length for item in failing)
    from_there = [item for item in inputs if item.length >= shortest]
    share = "every input" if len(failing) == len(inputs) else f"{len(failing)} of {len(inputs)} inputs"
    paddings = [kind for kind in PADDINGS if any(item.padding == kind for item in from_there)]
    touched = [kind for kind in paddings if any(item.padding == kind for item in failing)]
    parts = [f"{share} fail{'s' if share.startswith('every') else ''}"]
    if len(failing) < len(inputs):
        all_longer = len(failing) == len(from_there)
        words = f"{shortest} token{'s' if shortest > 1 else ''}"
        parts.append(f"all from {words} on" if all_longer else f"the shortest of {words}")
    if len(touched) < len(paddings):
        parts.append(f"only those with padding {', '.join(PADDING_WORDS[kind] for kind in touched)}")
    return ", ".join(parts)


def _looked_at(suspect: Suspect, failing: Sequence[int], spec: ModelSpec) -> list[int]:
    """The failing case with the fewest tokens, and longer ones, on which different models differ."""
    cases = suspect.outputs.cases
    numbers = list(failing[:1])
    for longest in (spec.half_window, TELLING):
        numbers += [n for n in failing if cases[n].length <= longest][-1:]
    return list(dict.fromkeys(numbers))


def _cause(
    suspect: Suspect,
    numbers: Sequence[int],
    spec: ModelSpec,
    pytorch: TorchReference | None,
    tick: Callable[[Case], None],
) -> tuple[Fault | None, int]:
    """What explains the outputs of some cases, if anything does, and how many models were tried."""
    chosen = suspect.outputs.of(numbers)
    allowed = [min(REPRODUCED * error, LENIENT * suspect.limit) for error in case_errors(chosen)]
    found: list[tuple[float, _Candidate]] = []
    tried = 0
    for candidate in _candidates(chosen, spec, pytorch):
        if candidate.is_model:
            tick(chosen.cases[0])
        left = _left(candidate, chosen, allowed)
        tried += candidate.is_model and left is not None
        if left is not None and left < float("inf"):
            found.append((left, candidate))
    if not found:
        return None, tried
    least = min(left for left, _ in found)
    best = next(candidate for left, candidate in found if left <= 2 * least)  # of models that are the same here
    fitting = [n for n, case in enumerate(chosen.cases) if best.fits(case)]
    evidence = _relative([best.answer(n) for n in fitting], [chosen.found[n] for n in fitting])
    tokens, channels = failing_words(suspect.parity.inputs, suspect.limit), _channels(suspect, chosen)
    return Fault((OUTPUTS,), OUTPUTS, OUTPUTS, best.cause, best.explanation, evidence, tokens, channels), tried


def _left(candidate: _Candidate, chosen: Outputs, allowed: Sequence[float]) -> float | None:
    """The largest error that a candidate leaves, infinite where one is too large; None where it cannot be run."""
    left: list[float] = []
    try:
        for number, most in enumerate(allowed):
            if candidate.fits(chosen.cases[number]):
                left.append(largest_error(candidate.answer(number), chosen.found[number]))
                if not left[-1] <= most:
                    return float("inf")  # the next, longer, case need not be run
    except Exception:  # a setting that this transformers does not have: the comparison itself is done
        return None
    return max(left, default=float("inf"))


@dataclass(frozen=True)
class _Candidate:
    """What may explain a graph's outputs: gives those of the case of a number, where it fits the case."""

    cause: str
    explanation: str
    answer: Callable[[int], FloatArray]
    is_model: bool = False
    fits: Callable[[Case], bool] = lambda case: True  # noqa: ARG005


def _candidates(chosen: Outputs, spec: ModelSpec, pytorch: TorchReference | None) -> Iterator[_Candidate]:
    yield from _transformed(chosen, spec)
    if pytorch is not None:
        yield from _models(chosen, spec, pytorch)


def _models(chosen: Outputs, spec: ModelSpec, pytorch: TorchReference) -> Iterator[_Candidate]:
    """PyTorch as other models would be."""
    from mbexport.parity.pytorch.variants import Altered, Variant, variants  # --against has no need of PyTorch

    def answer(number: int, variant: Variant) -> FloatArray:
        with ExitStack() as stack:
            variant.change(Altered(pytorch.model, stack))
            return pytorch.run(chosen.cases[number], chosen.places[number])

    def sees(case: Case) -> bool:
        return not (spec.has_local and has_blind_places(case, spec.half_window))

    for variant in variants(spec):
        run = partial(answer, variant=variant)
        if variant.reads_padding:
            yield _Candidate(variant.cause, variant.explanation, run, is_model=True, fits=sees)
        else:
            yield _Candidate(variant.cause, variant.explanation, run, is_model=True)


def has_blind_places(case: Case, half_window: int) -> bool:
    """Whether a place sees no real token in a local layer, so that each implementation computes something else there.

    Args:
        case: the inputs.
        half_window: how far a place sees to either side.
    """
    for mask in case.attention_mask:
        real = np.flatnonzero(mask)
        gaps = np.diff(real) - 1  # between two real tokens; the middle of a gap sees the least
        edges = max(real[0], case.length - 1 - real[-1])
        if edges > half_window or (gaps > 2 * half_window).any():
            return True
    return False


def _transformed(chosen: Outputs, spec: ModelSpec) -> Iterator[_Candidate]:
    """The reference's outputs as something after the model may have changed them."""
    order = _order(np.concatenate(list(chosen.expected)), np.concatenate(list(chosen.found)))
    if order is not None:
        labels = spec.head.labels if spec.head is not None else ()
        moved = [(n, of) for n, of in enumerate(order) if n != of]
        named = [f"{_name(labels, n)} gives the model's {_name(labels, of)}" for n, of in moved[:5]]
        more = f" and {len(moved) - 5} more" if len(moved) > 5 else ""
        words = f"the outputs are in another order: {', '.join(named)}{more}"
        yield _Candidate("permuted labels", words, lambda number: chosen.expected[number][:, order])
    functions: dict[str, Callable[[FloatArray], FloatArray | DoubleArray]] = {
        "the outputs are probabilities (softmax), not logits": partial(scores, activation="softmax"),
        "the outputs are probabilities (sigmoid), not logits": partial(scores, activation="sigmoid"),
        "the outputs are logarithms of probabilities, not logits": lambda x: np.log(scores(x, "softmax")),
        "the outputs are normalized to length 1": _normalized,
    }
    for words, function in functions.items():
        yield _Candidate("score function", words, partial(_applied, function, chosen.expected))


def _applied(
    function: Callable[[FloatArray], FloatArray | DoubleArray], values: Sequence[FloatArray], number: int
) -> FloatArray:
    with np.errstate(all="ignore"):
        return function(values[number]).astype(np.float32)


def _order(expected: FloatArray, found: FloatArray) -> list[int] | None:
    """Of each output of ``found`` the output of ``expected`` that is nearest; None unless they are all, moved about."""
    count = expected.shape[-1]
    if not 2 <= count <= 1000:
        return None
    order = [int(np.abs(expected - found[:, [n]]).max(axis=0).argmin()) for n in range(count)]
    return order if sorted(order) == list(range(count)) and order != list(range(count)) else None


def _normalized(values: FloatArray) -> FloatArray | DoubleArray:
    lengths: FloatArray | DoubleArray = np.linalg.norm(values, axis=-1, keepdims=True)
    return values / lengths


def _refusal(suspect: Suspect) -> Fault:
    lengths = sorted(suspect.refused)
    named = ", ".join(map(str, lengths[:8])) + (" ..." if len(lengths) > 8 else "")
    message = suspect.refused[lengths[0]]
    words = f"ONNX Runtime fails on inputs of {named} tokens: {message:.300}"
    return Fault((OUTPUTS,), OUTPUTS, OUTPUTS, "does not run", words, None, f"inputs of {named} tokens", "all")


def _channels(suspect: Suspect, chosen: Outputs) -> str:
    """Which outputs of a unit are wrong, in words."""
    pairs = zip(chosen.expected, chosen.found, strict=True)
    largest = np.max([np.abs(found - expected).max(axis=0) for expected, found in pairs], axis=0)
    wrong = np.flatnonzero(~(largest <= suspect.limit))
    if len(wrong) in (0, len(largest)):
        return f"all {len(largest)} outputs"
    return f"outputs {', '.join(map(str, wrong[:8]))}{' ...' if len(wrong) > 8 else ''} of {len(largest)}"


def _relative(expected: Sequence[FloatArray], found: Sequence[FloatArray]) -> float:
    """Root mean square error over the root mean square of what is expected."""
    first, second = (np.concatenate([v.reshape(-1) for v in values]).astype(np.float64) for values in (expected, found))
    scale = float(np.sqrt(np.mean(np.square(first)))) or 1.0
    return float(np.sqrt(np.mean(np.square(second - first)))) / scale


def _name(labels: tuple[str, ...], number: int) -> str:
    return repr(labels[number]) if number < len(labels) else f"output {number}"


def _inputs(suspect: Suspect, numbers: Sequence[int] | range) -> str:
    cases = [suspect.outputs.cases[n] for n in numbers]
    named = [f"{case.input_ids.shape[0]} x {case.length}" for case in cases[:3]]
    return f"texts x tokens: {', '.join(named)}{f' and {len(cases) - 3} more batches' if len(cases) > 3 else ''}"
