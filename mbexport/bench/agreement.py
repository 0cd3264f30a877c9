"""Whether a contender computed the same thing: a fast wrong answer is no result."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mbexport.bench.report import Agreement


def compare(reference: Path, name: str | None, found: Path, found_name: str | None, allowed: float) -> Agreement:
    """Hold a contender's outputs against those of the first one.

    Args:
        reference: the first contender's outputs, one array per text.
        name: what it calls them.
        found: the contender's.
        found_name: what it calls them; other names are other outputs and are not compared.
        allowed: share of the reference's spread, largest minus smallest value; beyond, an answer is wrong.
    """
    if name != found_name:
        return Agreement(reason=f"not compared: it gives {found_name}, the first contender {name}")
    expected, actual = _load(reference), _load(found)
    if [row.shape for row in expected] != [row.shape for row in actual]:
        return Agreement(wrong=True, reason=f"shape {actual[0].shape}, expected {expected[0].shape}")
    difference = max(float(np.abs(a - b).max(initial=0)) for a, b in zip(expected, actual, strict=True))
    low, high = min(float(row.min()) for row in expected), max(float(row.max()) for row in expected)
    spread = high - low or abs(high)
    if not np.isfinite(difference):
        return Agreement(wrong=True, reason="its outputs are not finite")
    share = difference / spread if spread else None
    return Agreement(difference, allowed * spread, wrong=difference > allowed * spread, share=share)


def _load(path: Path) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    with np.load(path) as file:
        return [file[f"arr_{number}"] for number in range(len(file.files))]
