"""Rotary position tables, computed as transformers computes them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from mbexport.checkpoint.rope_config import RopeSpec
from mbexport.errors import CheckpointError

FloatArray = npt.NDArray[np.float32]
FINE = 128  # positions of the finer part of a table in two parts


def rope_tables(rope: RopeSpec, head_dim: int, positions: int) -> tuple[FloatArray, FloatArray]:
    """Cosines and sines of the rotary angles, each [positions, head_dim / 2].

    Args:
        rope: the settings of one kind of layer.
        head_dim: channels of a head; even.
        positions: rows; at most the model's max_position_embeddings.

    Raises:
        CheckpointError: the settings give no numbers.
    """
    with np.errstate(all="ignore"):  # what comes of it is looked at
        frequencies, attention_factor = _frequencies(rope, head_dim)
        angles = (np.arange(positions, dtype=np.float32)[:, None] * frequencies[None, :]).astype(np.float64)
        cos, sin = (f(angles).astype(np.float32) * np.float32(attention_factor) for f in (np.cos, np.sin))
    if not (np.isfinite(cos).all() and np.isfinite(sin).all()):
        raise CheckpointError(f"config.json: the rotary settings {rope} give angles that are no numbers; correct them")
    return cos, sin


def split_tables(cos: FloatArray, sin: FloatArray) -> dict[str, FloatArray]:
    """A table in two parts, for graphs whose file has to be small: sums of angles give all positions.

    Args:
        cos: as :func:`rope_tables` gives them, [positions, head_dim / 2].
        sin: the same.

    Returns:
        ``fine.cos`` and ``fine.sin``, the first positions with the factor of all, [128, head_dim / 2];
        ``coarse.cos`` and ``coarse.sin``, every 128th position without it, [positions / 128, 1, head_dim / 2].
        What is put together is within 1e-3 of the table: float32 rounds an angle at position 8,191 by 5e-4.
    """
    factor = cos[0]  # the cosine of 0
    return {
        "fine.cos": cos[:FINE], "fine.sin": sin[:FINE],
        "coarse.cos": (cos[::FINE] / factor)[:, None], "coarse.sin": (sin[::FINE] / factor)[:, None],
    }  # fmt: skip


def _frequencies(rope: RopeSpec, head_dim: int) -> tuple[FloatArray, float]:
    """Radians per position, float32 [head_dim / 2], and the factor on cosines and sines.

    ``theta ** (-2i / head_dim)`` (Su et al., RoFormer, 2021, section 3.2.2), rounded to
    float32 where transformers' ModernBertRotaryEmbedding rounds: one unit in the last place
    of a frequency is 5e-4 radians at position 8,191. ``linear`` divides by the factor;
    ``dynamic`` equals the default up to max_position_embeddings, beyond which no table goes.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    periods = np.power(np.float64(rope.theta), exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1.0) / periods
    if rope.kind == "linear":
        return frequencies / np.float32(rope.factor), 1.0
    if rope.kind == "yarn":
        return _yarn_frequencies(rope, head_dim, periods), _yarn_attention_factor(rope)
    return frequencies, 1.0


def _yarn_frequencies(rope: RopeSpec, head_dim: int, periods: FloatArray) -> FloatArray:
    """Fast channels kept, slow ones divided by the factor, a linear ramp between them.

    Peng et al., YaRN, 2023, section 3.2; bounds as transformers' _compute_yarn_parameters.
    """

    def channel(rotations: float) -> float:
        """The channel that turns ``rotations`` times within the original length."""
        turns = (rope.original_positions or 1) / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low = max(math.floor(channel(rope.beta_fast)), 0)
    high = min(math.ceil(channel(rope.beta_slow)), head_dim - 1)
    width = high - low if high != low else 0.001
    ramp = np.clip((np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(width), 0, 1)
    kept = np.float32(1) - ramp.astype(np.float32)
    one = np.float32(1)
    return np.asarray(one / (np.float32(rope.factor) * periods) * (one - kept) + one / periods * kept)


def _yarn_attention_factor(rope: RopeSpec) -> float:
    """Peng et al., YaRN, 2023, equation 22: 0.1 ln(factor) + 1, unless config.json states another."""
    if rope.attention_factor is not None:
        return rope.attention_factor

    def magnitude(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return magnitude(rope.mscale) / magnitude(rope.mscale_all_dim)
    return magnitude(1.0)
