"""What a graph is held to: as exact as its precision can be, and no less."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mbexport.parity.report import Figures, OwnError

# Largest error of an FP32 graph: this share of the reference's spread, and no less than the
# rounding of values near 1 after some twenty layers.
RELATIVE_LIMIT, ABSOLUTE_LIMIT = 2e-5, 1e-5

# A half-precision graph may be as far from float32 as PyTorch's own run in half precision, times this: it and
# PyTorch round differently, so that of two runs as good as each other either may come out worse, and two that
# are compared with one another add up; benchmarks/NOTES.md has what was measured. Hence an error twice as large, an
# angle twice as wide (its cosine falls short of 1 by four times as much), twice as many predictions that are others.
HALF_FACTOR = 2.0

# Where PyTorch's own run is not to be had: largest share of the spread, least cosine (where a unit has more outputs
# than two: of one it is a sign), least share of equal predictions. Rounding the weights of a deep model to
# FP16 moves its logits by 1e-3 to 5e-3 of their spread, whatever computes them.
HALF_LIMIT, LEAST_COSINE, LEAST_AGREEMENT = 2e-2, 0.9999, 0.999

# However bad PyTorch's own run is, a graph worse than this does not compute the model: where float16 destroys its
# answers, twice as bad as PyTorch would let anything pass.
WORST_HALF, WORST_COSINE, WORST_AGREEMENT = 0.1, 0.9, 0.95


@dataclass(frozen=True)
class Terms:
    """What graph and reference are.

    predicts: what a prediction is: ``outputs`` (the largest of a unit), ``units`` (the largest of
    each output over a text's units, as for spans), None for none. precision: of the graph. is_half: whether it
    or the reference is in half precision. reference_error: what the reference itself may be off
    (FlashAttention runs in FP16). own: what half precision costs PyTorch itself, None where that was not run.
    is_judged: whether limits are asked of the graph. labels: names of the outputs.
    texts: those given, by their number.
    """

    predicts: str | None = None
    precision: str = "fp32"
    is_half: bool = False
    reference_error: float = 0.0
    own: OwnError | None = None
    is_judged: bool = True
    labels: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


def limits_of(terms: Terms, spread: float, outputs: int, predictions: int) -> dict[str, float]:
    """What is asked of a graph, as ``GraphParity.limits``.

    Args:
        terms: of the comparison.
        spread: largest less smallest output of the reference.
        outputs: of a unit.
        predictions: how many are compared, 0 where none are made.
    """
    if not terms.is_judged:
        return {}
    if not terms.is_half:
        return {"max_error": max(ABSOLUTE_LIMIT, RELATIVE_LIMIT * spread) + terms.reference_error}
    own = terms.own if terms.own is not None and math.isfinite(terms.own.max_error) else None
    error, cosine, agreement = HALF_LIMIT * spread, LEAST_COSINE, LEAST_AGREEMENT
    if own is not None:
        error = min(WORST_HALF * spread, HALF_FACTOR * own.max_error)
        cosine = max(WORST_COSINE, min(cosine, 1 - HALF_FACTOR**2 * (1 - own.cosine)))
        if own.agreement is not None and predictions:
            # One prediction may always be another: the largest error alone says whether that was a tie.
            others = min(HALF_FACTOR * (1 - own.agreement), 1 - WORST_AGREEMENT)
            agreement = min(agreement, 1 - max(others, 1 / predictions))
    limits = {"max_error": max(ABSOLUTE_LIMIT, error)}
    limits |= {"cosine": cosine} if outputs > 2 else {}
    return limits | ({"agreement": agreement} if predictions else {})


def within(overall: Figures, limits: dict[str, float]) -> bool:
    """Whether figures keep limits; one that is not finite keeps none."""
    agreement = 1.0 if overall.agreement is None else overall.agreement
    return (
        math.isfinite(overall.max_error)  # every comparison is False for NaN
        and overall.max_error <= limits.get("max_error", math.inf)
        and overall.cosine >= limits.get("cosine", -math.inf)
        and agreement >= limits.get("agreement", 0.0)
    )
