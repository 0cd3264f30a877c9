"""How far answers are from PyTorch's in FP32, and whether they are as close as mbexport asks of half precision."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from mbexport.parity.figures import cosines
from mbexport.parity.limits import Terms, limits_of, within
from mbexport.parity.report import Figures, OwnError

FloatArray = npt.NDArray[np.float32]
GATED = ("int8", "fp8")  # judged by answers on texts (mbexport int8), not by limits


def figures_of(expected: FloatArray, found: FloatArray) -> Figures:
    """Of logits, [texts, labels] each.

    Raises:
        ValueError: the shapes differ.
    """
    if expected.shape != found.shape:
        raise ValueError(f"the answers have shape {found.shape}, expected {expected.shape}")
    error = np.abs(found.astype(np.float64) - expected).max()
    error = float(error) if math.isfinite(error) else math.inf
    spread = float(np.ptp(expected))
    return Figures(
        rows=len(expected),
        max_error=error,
        relative_error=error / spread if spread else math.inf,
        cosine=float(cosines(expected, found).min()),
        agreement=float(np.mean(expected.argmax(-1) == found.argmax(-1))),
    )


def judged(expected: FloatArray, found: FloatArray, precision: str, own: Figures) -> dict[str, Any]:
    """Figures and a verdict.

    Args:
        expected: logits of PyTorch in FP32, [texts, labels].
        found: a contender's.
        precision: its own.
        own: PyTorch's SDPA in FP16, on the texts of all workloads: of one text, an error is chance. A half-precision
            graph may be twice as far off.

    Returns:
        The figures; ``ratio``: its largest error over PyTorch's own; ``passed``: None where no limits are asked.
    """
    figures = figures_of(expected, found)
    error = OwnError("PyTorch, SDPA, FP16", own.max_error, own.cosine, own.agreement)
    terms = Terms(predicts="outputs", precision=precision, is_half=precision != "fp32", own=error)
    limits = limits_of(terms, float(np.ptp(expected)), expected.shape[1], len(expected))
    ratio = figures.max_error / own.max_error if own.max_error else None
    passed = None if precision in GATED else within(figures, limits)
    return asdict(figures) | {"ratio": ratio, "passed": passed}
