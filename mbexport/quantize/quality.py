"""What quantization costs: answers of a graph against those of the FP32 graph, and the limits they are held to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mbexport.manifest import Manifest
from mbexport.options import MAX_F1_DROP, MIN_AGREEMENT, MIN_SIMILARITY
from mbexport.parity.figures import cosines

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Limits:
    """What a graph is held to: percent of equal predictions, points of macro-F1, similarity."""

    min_agreement: float = MIN_AGREEMENT
    max_f1_drop: float = MAX_F1_DROP
    min_similarity: float = MIN_SIMILARITY


@dataclass(frozen=True)
class Quality:
    """A graph against the FP32 graph, on texts that calibration did not see.

    Attributes:
        texts: how many.
        predictions: how many were counted (see :func:`predictions`); 0 where the model makes none.
        agreement: percent of equal predictions; None where the model makes none.
        f1: macro-F1 in percent against the labels of the texts; None without labels.
        f1_drop: points of macro-F1 that the FP32 graph is better by.
        error: root mean square error of the outputs, in standard deviations of the FP32 graph's.
        largest_error: the largest, in the same.
        similarity: of models without predictions: mean cosine of embeddings; of scores the coefficient of
            determination (1 less the mean square error over the variance), the lowest of all outputs.
    """

    texts: int
    predictions: int
    agreement: float | None
    f1: float | None
    f1_drop: float | None
    error: float
    largest_error: float
    similarity: float | None

    def faults(self, limits: Limits) -> list[str]:
        """Limits that do not hold, as texts; none if the graph passes."""
        found = []
        if not math.isfinite(self.error):
            found.append("outputs are not finite")
        if self.agreement is not None and not self.agreement >= limits.min_agreement:
            found.append(f"{self.agreement:.2f} % of predictions agree, {limits.min_agreement:g} % are asked for")
        if self.f1_drop is not None and not self.f1_drop <= limits.max_f1_drop:
            found.append(f"macro-F1 falls by {self.f1_drop:.2f} points, {limits.max_f1_drop:g} are allowed")
        if self.similarity is not None and not self.similarity >= limits.min_similarity:
            found.append(f"similarity is {self.similarity:.5f}, {limits.min_similarity:g} is asked for")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values, for JSON."""
        return asdict(self)


def measure(
    manifest: Manifest, expected: Sequence[FloatArray], found: Sequence[FloatArray], labels: Sequence[str | None]
) -> Quality:
    """Compare outputs, one array a text, [units, outputs]: a unit is the text, or one of its tokens.

    Args:
        manifest: the bundle's; its task decides what a prediction is.
        expected: of the FP32 graph.
        found: of the graph.
        labels: of the texts, None where one has none.
    """
    squares, largest, deviation = 0.0, 0.0, _deviation(expected)
    for before, after in zip(expected, found, strict=True):
        difference = after.astype(np.float64) - before
        squares += float(np.square(difference).sum())
        largest = float(np.maximum(largest, np.abs(difference).max()))  # a NaN stays one
    error = math.sqrt(squares / sum(output.size for output in expected)) if math.isfinite(squares) else math.inf
    first, second = predictions(manifest, expected), predictions(manifest, found)
    agreement = score = after_score = counted = None
    if first is not None and second is not None:
        counted = _counted(manifest, first, second)
        agreement = 100 * float((first == second)[counted].mean()) if counted.any() else 100.0
        if manifest.task == "text-classification":
            score, after_score = (_f1(manifest, chosen, labels) for chosen in (first, second))
    return Quality(
        texts=len(expected),
        predictions=0 if counted is None else int(counted.sum()),
        agreement=agreement,
        f1=after_score,
        f1_drop=None if score is None or after_score is None else score - after_score,
        error=error / deviation,
        largest_error=largest / deviation,
        similarity=_similarity(manifest, expected, found) if first is None else None,
    )


def _deviation(outputs: Sequence[FloatArray]) -> float:
    """Standard deviation of all outputs, 1 where they are all the same."""
    count = sum(output.size for output in outputs)
    mean = sum(float(output.sum(dtype=np.float64)) for output in outputs) / count
    squares = sum(float(np.square(output.astype(np.float64) - mean).sum()) for output in outputs)
    return math.sqrt(squares / count) or 1.0


def predictions(manifest: Manifest, outputs: Sequence[FloatArray]) -> npt.NDArray[np.generic] | None:
    """What a user would see decided, one after another; None where a model decides nothing.

    The largest output of a unit; where labels do not exclude one another, each of them; the largest
    start and end over a text's tokens.
    """
    task = manifest.task
    if task == "question-answering":
        return np.concatenate([output.argmax(axis=0) for output in outputs])
    if task == "fill-mask":
        return np.concatenate([output.argmax(axis=-1) for output in outputs])
    if task not in ("text-classification", "token-classification") or len(manifest.labels or ()) < 2:
        return None
    if task == "text-classification" and manifest.activation != "softmax":
        # Numbers are no classes; of labels that do not exclude one another each is decided by its sign.
        return None if manifest.activation == "none" else (np.concatenate(outputs) > 0).reshape(-1)
    return np.concatenate([output.argmax(axis=-1) for output in outputs])


def _counted(
    manifest: Manifest, first: npt.NDArray[np.generic], second: npt.NDArray[np.generic]
) -> npt.NDArray[np.bool_]:
    """Which predictions count: all, but what is nearly always predicted must not hide the rest.

    Of labels that do not exclude one another, those that either graph gives; of tokens, those that either
    graph puts into another class than the FP32 graph's most frequent.
    """
    if manifest.task == "token-classification":
        usual: Any = np.bincount(first.astype(np.int64)).argmax()
    elif manifest.task == "text-classification" and manifest.activation == "sigmoid":
        usual = False
    else:
        return np.ones(len(first), np.bool_)
    return np.asarray((first != usual) | (second != usual))


def _similarity(manifest: Manifest, expected: Sequence[FloatArray], found: Sequence[FloatArray]) -> float:
    if manifest.task == "feature-extraction":
        return float(cosines(np.concatenate(expected), np.concatenate(found)).mean())
    before, after = np.concatenate(expected).astype(np.float64), np.concatenate(found).astype(np.float64)
    variance = before.var(axis=0)
    # Of a single text, or equal scores, nothing varies: their size takes its place.
    scale = np.where(variance > 0, variance, np.maximum(np.square(before).mean(axis=0), np.finfo(np.float64).tiny))
    return float((1 - np.square(after - before).mean(axis=0) / scale).min())


def _f1(manifest: Manifest, chosen: npt.NDArray[np.generic], labels: Sequence[str | None]) -> float | None:
    """Macro-F1 in percent, the mean over the labels that occur; None unless every text has one of the model's."""
    names = list(manifest.labels or ())
    if manifest.activation != "softmax" or not labels or any(label not in names for label in labels):
        return None
    truth = np.array([names.index(str(label)) for label in labels])
    scores = []
    for number in np.unique(truth):
        hits = int(((chosen == number) & (truth == number)).sum())
        scores.append(2 * hits / (int((chosen == number).sum()) + int((truth == number).sum())))
    return 100 * float(np.mean(scores))
