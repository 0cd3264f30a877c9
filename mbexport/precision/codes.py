"""Matrices as 8-bit codes, a scale for each output."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MOST = 127  # of either sign: symmetric, so that zero has the code 0

FloatArray = npt.NDArray[np.float32]


def to_codes(matrix: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """int8 codes of a matrix and what a code counts, by output channel.

    Args:
        matrix: [in, out].

    Returns:
        Codes [in, out] in [-127, 127], and scales [out]: ``codes * scales`` is the matrix, each number
        within half a scale. A column of zeros has the scale 1.
    """
    largest = np.abs(matrix).max(axis=0)
    scale = np.where(largest > 0, largest / MOST, 1).astype(np.float32)
    return np.rint(matrix / scale).astype(np.int8), scale
