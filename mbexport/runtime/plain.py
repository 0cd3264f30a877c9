"""Answers without NumPy's types, as JSON can hold them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def plain(answer: Any) -> Any:
    """An answer, or several, as dicts, lists, texts and Python's own numbers; float32 as the float64 of equal value.

    Args:
        answer: what a model's call gives: a dict, a vector [size], vectors [tokens, size], or a list of those.

    Raises:
        ValueError: a number in it is infinite or NaN: the model computed nonsense.
    """
    if isinstance(answer, dict):
        return {key: plain(inner) for key, inner in answer.items()}
    if isinstance(answer, (list, tuple)):
        return [plain(inner) for inner in answer]
    if isinstance(answer, (np.ndarray, np.generic)):
        if np.issubdtype(answer.dtype, np.floating) and not np.isfinite(answer).all():
            raise ValueError("the model computed numbers that are infinite or NaN")
        return answer.tolist()
    if isinstance(answer, float) and not math.isfinite(answer):
        raise ValueError(f"the model computed {answer}")
    return answer
