"""How large the values between layers can become, whatever the text: from the weights alone.

Layer normalization makes this possible: what enters a projection has a norm of at most
sqrt(size), times the normalization's weights, plus its bias; so by Cauchy and Schwarz no channel
of the product, and no partial sum of it, exceeds the bounds below.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def after_norm(weight: FloatArray, bias: FloatArray | None) -> FloatArray:
    """Largest values of the channels that leave a layer normalization, [size]."""
    bound = np.sqrt(len(weight)) * np.abs(weight, dtype=np.float64)
    return _up(bound if bias is None else bound + np.abs(bias))


def normed_product(
    matrix: FloatArray, weight: FloatArray, norm_bias: FloatArray | None, bias: FloatArray | None
) -> FloatArray:
    """Largest values of ``x @ matrix + bias`` where x left a layer normalization, [out].

    Args:
        matrix: [in, out].
        weight: of the normalization, [in].
        norm_bias: of the normalization, [in].
        bias: of the product, [out].
    """
    bound = np.sqrt(len(weight)) * np.linalg.norm(weight[:, None].astype(np.float64) * matrix, axis=0)
    if norm_bias is not None:
        bound += np.abs(norm_bias.astype(np.float64)) @ np.abs(matrix)
    return _up(bound if bias is None else bound + np.abs(bias))


def product(matrix: FloatArray, inputs: FloatArray, bias: FloatArray | None) -> FloatArray:
    """Largest values of ``x @ matrix + bias`` where |x| <= inputs, [out]; matrix [in, out]."""
    bound = inputs.astype(np.float64) @ np.abs(matrix)
    return _up(bound if bias is None else bound + np.abs(bias))


def head_norms(
    matrix: FloatArray, weight: FloatArray, norm_bias: FloatArray | None, bias: FloatArray | None, heads: int
) -> FloatArray:
    """Largest Euclidean norm of each head's queries (or keys), [heads]; arguments as :func:`normed_product`."""
    scaled = weight[:, None].astype(np.float64) * matrix
    fixed = np.zeros(matrix.shape[1]) if bias is None else bias.astype(np.float64)
    if norm_bias is not None:
        fixed = fixed + norm_bias.astype(np.float64) @ matrix
    parts = scaled.reshape(len(scaled), heads, -1).transpose(1, 0, 2)  # [heads, in, head_dim]
    # Largest singular values by way of the small square matrices: many times as fast.
    largest = np.linalg.eigvalsh(parts.transpose(0, 2, 1) @ parts)[:, -1]
    rest = np.linalg.norm(fixed.reshape(heads, -1), axis=1)
    return _up(np.sqrt(len(weight) * np.maximum(largest, 0)) + rest)


def rotated(bound: FloatArray, heads: int, factor: float) -> FloatArray:
    """Largest values of each head's channels after rotary positions, [heads].

    Channel i turns with i + half a head; ``factor`` multiplies both.
    """
    halves = bound.astype(np.float64).reshape(heads, 2, -1)
    return _up(factor * np.sqrt((halves**2).sum(axis=1)).max(axis=1))


def _up(bound: npt.NDArray[np.float64]) -> FloatArray:
    """As float32, not below it: infinite beyond float32; what can only be 0 stays 0."""
    with np.errstate(over="ignore"):
        above: FloatArray = np.nextafter(bound.astype(np.float32), np.float32(np.inf))
    return np.where(bound == 0, np.float32(0), above)
