"""Matrices as codes of 8 bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from mbexport.precision.codes import to_codes, to_fp8


def matrix(seed: int = 0) -> np.ndarray:
    """Columns of very different size, one of zeros."""
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(96, 40)).astype(np.float32) * 2.0 ** rng.integers(-30, 30, 40).astype(np.float32)
    columns[:, 7] = 0
    return columns


def test_int8_codes() -> None:
    codes, scale = to_codes(matrix())
    assert (codes.dtype, scale.dtype, codes.shape, scale.shape) == (np.int8, np.float32, (96, 40), (40,))
    np.testing.assert_array_equal(np.abs(codes.astype(int)).max(axis=0), [127] * 7 + [0] + [127] * 32)
    assert scale[7] == 1
    assert (np.abs(codes * scale - matrix()) <= 0.5001 * scale).all()
    assert not (np.abs(codes * scale - matrix()) <= 0.49 * scale).all()  # the control: rounding is there


def test_fp8_codes() -> None:
    codes, scale = to_fp8(matrix())
    assert (codes.dtype, scale.dtype) == (ml_dtypes.float8_e4m3fn, np.float32)
    values = codes.astype(np.float32)
    assert np.isfinite(values).all()
    np.testing.assert_array_equal(np.abs(values).max(axis=0), [448] * 7 + [0] + [448] * 32)
    error = np.abs(values * scale - matrix())
    assert (error <= np.maximum(np.abs(matrix()) / 16, 2.0**-10 * scale) * 1.0001).all()  # 3 bits behind the point


@pytest.mark.parametrize("convert", [to_codes, to_fp8])
def test_columns_at_the_edge_of_float32_stay_within_the_codes(convert: object) -> None:
    tiny = np.array([[1e-45, 3e38], [-2.5e-43, -1e38]], np.float32)
    codes, scale = convert(tiny)  # type: ignore[operator]
    assert np.isfinite(scale).all()
    assert (np.abs(codes.astype(np.float32)) <= (127 if convert is to_codes else 448)).all()
