"""How strongly each site is smoothed, and the range of its codes: by the error of its products, as measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mbexport.errors import PrecisionError
from mbexport.precision.codes import MOST, to_codes

FloatArray = npt.NDArray[np.float32]

# SmoothQuant's alpha: the share of a channel's spread that the weights take over. All of these undo a
# rescaling of a channel against its weights, however large.
STRENGTHS = (0.5, 0.65, 0.8, 0.9, 1.0)
# Shares of the sampled values that a range covers; the first is their largest. Values beyond are cut.
COVERED = (1.0, 0.99999, 0.9999, 0.999)
MEASURED = 384  # sampled tokens that errors are measured on
# A range for each token is taken where one for all tokens, cutting none, has this many times its error,
# and so much of it that other errors do not hide it.
WORTH, NOTABLE = 1.5, 0.01
LEAST_RANGE = float(MOST * np.finfo(np.float32).tiny)  # whose code counts a number that divides
MOST_FACTOR = 60.0  # in powers of two: beyond, a channel adds nothing, or the others nothing to it


@dataclass(frozen=True)
class SiteFigures:
    """What was chosen for a site in numbers, and its errors.

    Attributes:
        strength: SmoothQuant's alpha.
        range: the largest magnitude, after smoothing, that has a code of its own; one for all tokens.
        covered: share of the sampled values within it.
        error: of the products with that range, root mean square over that of the products.
        row_error: the same with a range for each token.
        by_row: whether tokens are so uneven that a range for each is worth what it costs, where a runtime
            has it; elsewhere few values are cut there.
    """

    strength: float
    range: float
    covered: float
    error: float
    row_error: float
    by_row: bool


@dataclass(frozen=True)
class Choice(SiteFigures):
    """What was chosen for a site: its figures, and what values are divided by, ``factor``, [in]."""

    factor: FloatArray


def choose(rows: FloatArray, largest: FloatArray, matrices: Sequence[FloatArray]) -> Choice:
    """Smoothing and range of a site, by least error of its products.

    Factors are taken from the sampled tokens: one token in a million must not decide them. Nothing that
    was seen is cut where tokens are even: the mean error would be a little less, that of rare tokens,
    which the sample has few of, much more.

    Args:
        rows: sampled tokens, [n, in].
        largest: of each channel, over all tokens that were seen, [in].
        matrices: what the values are multiplied with, each [in, out].

    Raises:
        PrecisionError: products overflow in float32.
    """
    weights = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    sizes, measured = np.abs(rows).max(axis=0), rows[:: -(-len(rows) // MEASURED)]
    with np.errstate(over="ignore", invalid="ignore"):
        products = [measured @ matrix for matrix in matrices]
    if not all(np.isfinite(product).all() for product in products):
        raise PrecisionError("products overflow in float32 itself; look for weights that are not what they were")
    best: Choice | None = None
    for strength in STRENGTHS:
        factor = smoothing(sizes, weights, strength)
        smoothed = measured / factor
        coded = [_decoded(matrix * factor[:, None]) for matrix in matrices]
        uncut, *cut = (
            (_error(_rounded(smoothed, limit), coded, products), limit, share)
            for share, limit in _ranges(rows / factor, largest / factor)
        )
        row_error = _error(_rounded(smoothed, np.abs(smoothed).max(axis=1, keepdims=True)), coded, products)
        by_row = uncut[0] > max(WORTH * row_error, NOTABLE)
        error, limit, share = min(uncut, *cut) if by_row else uncut
        if best is None or error < best.error:
            best = Choice(strength, limit, share, error, row_error, by_row, factor)
    assert best is not None
    return best


def smoothing(activations: FloatArray, weights: FloatArray, strength: float) -> FloatArray:
    """SmoothQuant's factor of each channel, ``activations**strength / weights**(1 - strength)``.

    Brought to a geometric mean of 1. A channel that never was other than 0, or has only weights of 0,
    keeps the factor 1.

    Args:
        activations: largest magnitude of each channel, [in].
        weights: largest weight that each channel meets, [in].
        strength: alpha, 0 to 1.
    """
    used = (activations > 0) & (weights > 0)
    factor = np.ones_like(activations)
    if used.any():
        exponents = strength * np.log2(activations[used]) - (1 - strength) * np.log2(weights[used])
        factor[used] = np.exp2(np.clip(exponents - exponents.mean(), -MOST_FACTOR, MOST_FACTOR))
    return factor


def _ranges(smoothed: FloatArray, largest: FloatArray) -> Iterator[tuple[float, float]]:
    """Shares of values covered, and the range of each."""
    sizes = np.sort(np.abs(smoothed), axis=None)
    for share in COVERED:
        limit = float(largest.max()) if share == 1 else float(sizes[int(share * (len(sizes) - 1))])
        yield share, limit if limit >= LEAST_RANGE else 1.0  # all of them 0, or as good as


def _rounded(values: FloatArray, limit: float | FloatArray) -> FloatArray:
    """Values as their codes stand for them."""
    step = np.maximum(np.float32(limit) / MOST, np.finfo(np.float32).tiny)
    rounded: FloatArray = np.clip(np.rint(values / step), -MOST, MOST) * step
    return rounded


def _decoded(matrix: FloatArray) -> FloatArray:
    codes, scale = to_codes(matrix)
    return codes * scale


def _error(rows: FloatArray, matrices: Sequence[FloatArray], products: Sequence[FloatArray]) -> float:
    """Root mean square error over root mean square, the mean over the products."""
    errors = []
    for matrix, product in zip(matrices, products, strict=True):
        size = _mean_square(product)
        errors.append(_mean_square(rows @ matrix - product) / size if size else 0.0)
    return float(np.sqrt(np.mean(errors)))


def _mean_square(values: FloatArray) -> float:
    return float(np.mean(np.square(values, dtype=np.float64)))
