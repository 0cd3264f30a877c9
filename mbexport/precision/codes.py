"""Matrices as codes of 8 bits, and what one code of each output channel counts."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mbexport.errors import PrecisionError

FloatArray = npt.NDArray[np.float32]

MOST, MOST_FP8 = 127, 448  # the largest codes that are used, of either sign; FP8 is E4M3 without infinities


def to_codes(matrix: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    """A matrix as int8 codes in [-127, 127], a scale for each output channel; zero is code 0.

    Args:
        matrix: [in, out].

    Returns:
        Codes, [in, out], and scales, [out]: ``codes * scales`` is the matrix, rounded. A channel's largest
        weight has code 127 or -127; the scale of one that is all zeros, or too small for a scale, is 1.

    Raises:
        PrecisionError: a weight is no number.
    """
    scale = _scale(matrix, MOST)
    return np.clip(np.rint(matrix / scale), -MOST, MOST).astype(np.int8), scale


def to_fp8(matrix: FloatArray) -> tuple[npt.NDArray[ml_dtypes.float8_e4m3fn], FloatArray]:
    """A matrix as E4M3 codes within 448, a scale for each output channel; otherwise as :func:`to_codes`."""
    scale = _scale(matrix, MOST_FP8)
    return np.clip(matrix / scale, -MOST_FP8, MOST_FP8).astype(ml_dtypes.float8_e4m3fn), scale


def _scale(matrix: FloatArray, most: int) -> FloatArray:
    """What a code of each column counts, [out]."""
    scale: FloatArray = np.abs(matrix).max(axis=0) / np.float32(most)
    if not np.isfinite(scale).all():
        raise PrecisionError("weights leave float32 when they are smoothed; look for some that are not what they were")
    return np.where(scale > 0, scale, np.float32(1))
