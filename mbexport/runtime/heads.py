"""Logits to scores, labels and vectors: numpy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mbexport.manifest import Manifest

FloatArray = npt.NDArray[np.float32]


def scores(logits: FloatArray, activation: str) -> npt.NDArray[np.float64]:
    """Finite logits [..., labels] to scores of the same shape, finite too: softmax, sigmoid or none."""
    x = logits.astype(np.float64)
    if activation == "softmax":
        exponents = np.exp(x - x.max(axis=-1, keepdims=True))
        return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))
    if activation == "sigmoid":
        small = np.exp(-np.abs(x))  # at most 1
        return np.asarray(np.where(x < 0, small, 1.0) / (1.0 + small))
    return x


def classification(logits: FloatArray, manifest: Manifest) -> dict[str, Any]:
    """The answer for one text, from its logits [labels].

    ``label`` and ``score`` of the highest output; where outputs do not exclude one another
    (several labels, or several regressed values) ``scores`` holds them all by label.
    """
    labels = manifest.labels or ()
    values = scores(logits, manifest.activation)
    best = int(logits.argmax())  # of scores several may be 1
    answer: dict[str, Any] = {"label": labels[best], "score": float(values[best])}
    if manifest.activation != "softmax" and len(labels) > 1:
        answer["scores"] = {label: float(value) for label, value in zip(labels, values, strict=True)}
    return answer


def choice(logits: FloatArray, choices: Sequence[str]) -> dict[str, Any]:
    """The likeliest of several choices, from one logit each.

    Returns:
        ``{"label", "score", "choice", "scores"}``: the choice's text, its probability, its
        number, and the probabilities of all in order.
    """
    values = scores(logits.reshape(-1), "softmax")
    best = int(values.argmax())
    return {"label": choices[best], "score": float(values[best]), "choice": best, "scores": values.tolist()}


def top_tokens(logits: FloatArray, count: int, decode: Callable[[int], str]) -> list[dict[str, Any]]:
    """The likeliest tokens in the place of one mask, from its logits [vocabulary].

    Returns:
        Per token ``{"token", "token_str", "score"}``: number, text, probability; best first.
    """
    values = scores(logits, "softmax")
    best = np.argsort(-logits, kind="stable")[:count]  # of scores many may be 0
    return [{"token": int(n), "token_str": decode(int(n)), "score": float(values[n])} for n in best]


def normalized(vectors: FloatArray) -> FloatArray:
    """Vectors [..., size] brought to length 1."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


def shortened(vector: FloatArray, size: int | None, *, renormalize: bool = False) -> FloatArray:
    """The first ``size`` numbers of a vector [numbers] (Matryoshka), all for None, perhaps brought to length 1."""
    if size is None or size >= len(vector):
        return vector
    return normalized(vector[:size]) if renormalize else vector[:size]


def pool(hidden: FloatArray, pooling: str) -> FloatArray:
    """Token vectors of a text without padding, [tokens, hidden], to one vector [hidden]; finite where they are."""
    return np.asarray(hidden[0] if pooling == "cls" else hidden.mean(axis=0, dtype=np.float64), dtype=np.float32)
