"""Where a graph's outputs alone can be seen: which inputs fail, and which other model would answer so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from mbexport.checkpoint.load import Checkpoint
from mbexport.checkpoint.spec import ModelSpec
from mbexport.parity.figures import FloatArray, Outputs, case_errors
from mbexport.parity.report import Diagnosis, Fault, GraphParity, InputFigures
from mbexport.parity.samples import PADDINGS

OUTPUTS = "outputs"  # the one stage that there is
REPRODUCED = 1 / 20  # of the error that the unchanged model leaves, what one that explains it may leave
LENIENT = 2  # times the limit that it must keep, too
LONGEST = 1024  # tokens of inputs that are looked at, unless only longer ones fail
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


def explain(suspect: Suspect, spec: ModelSpec, checkpoint: Checkpoint | None) -> Diagnosis:
    """The best that outputs alone can say.

    Args:
        suspect: the graph.
        spec: the model that it should compute.
        checkpoint: its weights for PyTorch; None where there are none, so that no other model can be tried.
    """
    failing = suspect.failing()
    where = failing_words(suspect.parity.inputs, suspect.limit)
    unknown = "the graph does not say which of its inner values are which, so that no layer can be named"
    if not failing:
        return Diagnosis(_inputs(suspect, range(len(suspect.outputs.cases))), (), (), f"{where}; {unknown}")
    faults = [_refusal(suspect)] if suspect.refused else []
    answered = [n for n in failing if suspect.outputs.cases[n].length not in suspect.refused]
    looked_at = list(dict.fromkeys([*answered[:1], *answered[-1:]]))
    tried = 0
    if looked_at:
        found, tried = _cause(suspect, looked_at, spec, checkpoint)
        faults += [] if found is None else [found]
    if faults:
        conclusion = f"{'; '.join(fault.explanation for fault in faults)}; {where}"
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
        parts.append(f"{'all' if len(failing) == len(from_there) else 'the first'} from {shortest} tokens on")
    if len(touched) < len(paddings):
        parts.append(f"only those with padding {', '.join(PADDING_WORDS[kind] for kind in touched)}")
    return ", ".join(parts)


def _cause(
    suspect: Suspect, numbers: Sequence[int], spec: ModelSpec, checkpoint: Checkpoint | None
) -> tuple[Fault | None, int]:
    """What explains the outputs of some cases, if anything does, and how many models were tried."""
    chosen = suspect.outputs.of(numbers)
    tokens, channels = failing_words(suspect.parity.inputs, suspect.limit), _channels(suspect, chosen)
    left_by_none = max(case_errors(chosen))
    allowed = min(REPRODUCED * left_by_none, LENIENT * suspect.limit)
    candidates = [*_transformed(chosen, spec)]
    tried = 0
    if checkpoint is not None:
        for candidate in _models(chosen, spec, checkpoint):
            candidates.append(candidate)
            tried += 1
    errors = [max(case_errors(Outputs(chosen.cases, chosen.places, c.values, chosen.found))) for c in candidates]
    least = min(errors, default=float("inf"))
    if not least <= allowed:
        return None, tried
    best = next(n for n, error in enumerate(errors) if error <= 2 * least)  # models that are the same here: the first
    found = candidates[best]
    evidence = _relative(found.values, chosen.found)
    return Fault((OUTPUTS,), OUTPUTS, OUTPUTS, found.cause, found.explanation, evidence, tokens, channels), tried


@dataclass(frozen=True)
class _Candidate:
    cause: str
    explanation: str
    values: list[FloatArray]


def _models(chosen: Outputs, spec: ModelSpec, checkpoint: Checkpoint) -> Iterator[_Candidate]:
    """Outputs of PyTorch as other models would be."""
    from mbexport.parity.references import TorchReference  # --against has no need of PyTorch
    from mbexport.parity.variants import Altered, variants

    reference = TorchReference(checkpoint, "sdpa")
    for variant in variants(spec):
        with ExitStack() as stack:
            variant.change(Altered(reference.model, stack))
            values = [reference.run(case, places) for case, places in zip(chosen.cases, chosen.places, strict=True)]
        yield _Candidate(variant.cause, variant.explanation, values)


def _transformed(chosen: Outputs, spec: ModelSpec) -> Iterator[_Candidate]:
    """The reference's outputs as something after the model may have changed them."""
    order = _order(np.concatenate(list(chosen.expected)), np.concatenate(list(chosen.found)))
    if order is not None:
        labels = spec.head.labels if spec.head is not None else ()
        moved = [(n, of) for n, of in enumerate(order) if n != of]
        named = [f"{_name(labels, n)} gives the model's {_name(labels, of)}" for n, of in moved[:5]]
        more = f" and {len(moved) - 5} more" if len(moved) > 5 else ""
        words = f"the outputs are in another order: {', '.join(named)}{more}"
        yield _Candidate("label order", words, [expected[:, order] for expected in chosen.expected])
    functions: dict[str, Callable[[FloatArray], FloatArray]] = {
        "the outputs are probabilities (softmax), not logits": _softmax,
        "the outputs are probabilities (sigmoid), not logits": _sigmoid,
        "the outputs are logarithms of probabilities, not logits": lambda x: np.log(_softmax(x)),
        "the outputs are normalized to length 1": _normalized,
    }
    with np.errstate(all="ignore"):
        for words, function in functions.items():
            values = [function(expected) for expected in chosen.expected]
            if all(np.isfinite(value).all() for value in values):
                yield _Candidate("score function", words, values)


def _order(expected: FloatArray, found: FloatArray) -> list[int] | None:
    """Of each output of ``found`` the output of ``expected`` that is nearest; None unless they are all, moved about."""
    count = expected.shape[-1]
    if not 2 <= count <= 1000:
        return None
    order = [int(np.abs(expected - found[:, [n]]).max(axis=0).argmin()) for n in range(count)]
    return order if sorted(order) == list(range(count)) and order != list(range(count)) else None


def _softmax(values: FloatArray) -> FloatArray:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    shares: FloatArray = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def _sigmoid(values: FloatArray) -> FloatArray:
    result: FloatArray = (1 / (1 + np.exp(-values))).astype(np.float32)
    return result


def _normalized(values: FloatArray) -> FloatArray:
    result: FloatArray = (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)
    return result


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
    shapes = [f"{case.input_ids.shape[0]} x {case.length}" for case in cases[:3]]
    more = f" and {len(cases) - 3} more" if len(cases) > 3 else ""
    return f"texts x tokens: {', '.join(shapes)}{more}"
