"""When a graph fails its gate: which parts hurt most, and how few of them must be kept until it passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.sites import encoder_sites
from mbexport.precision.integer import EMBEDDINGS_PART

MOST_KEPT = 0.5  # share of the parts; a graph that keeps more is hardly quantized


@dataclass(frozen=True)
class Sensitivity:
    """What a part costs: error of the outputs, in standard deviations, where it alone is quantized."""

    part: str
    error: float


def scan(spec: ModelSpec, error_of: Callable[[Sequence[str]], float]) -> tuple[Sensitivity, ...]:
    """The cost of every part by itself, the largest first.

    Args:
        spec: the model.
        error_of: from the parts that are kept to the error of the outputs.
    """
    parts = [EMBEDDINGS_PART, *(site.name for site in encoder_sites(spec))]
    found = [Sensitivity(part, error_of([other for other in parts if other != part])) for part in parts]
    return tuple(sorted(found, key=lambda item: -item.error))


def fewest_kept(ranking: Sequence[Sensitivity], passes: Callable[[Sequence[str]], bool]) -> tuple[str, ...] | None:
    """The shortest head of a ranking that must be kept for a graph to pass; None if no half of it is enough.

    Args:
        ranking: parts, the costliest first.
        passes: from the parts that are kept to the verdict.
    """
    parts = [item.part for item in ranking]
    most = max(1, int(MOST_KEPT * len(parts)))
    failing, count = 0, 1
    while not passes(parts[:count]):
        if count == most:
            return None
        failing, count = count, min(2 * count, most)
    while count - failing > 1:
        middle = (failing + count) // 2
        failing, count = (failing, middle) if passes(parts[:middle]) else (middle, count)
    return tuple(sorted(parts[:count]))
