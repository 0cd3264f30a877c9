"""Rotary position tables, computed as transformers computes them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def rope_tables(theta: float, head_dim: int, positions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosines and sines of the rotary angles, each [positions, head_dim / 2].

    Frequencies are ``theta ** (-2i / head_dim)`` (Su et al., RoFormer, 2021, section 3.2.2).
    They are rounded to float32 where transformers' ModernBertRotaryEmbedding rounds them:
    one unit in the last place of a frequency is 5e-4 radians at position 8,191.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1.0) / powers
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequencies[None, :]
    exact = angles.astype(np.float64)
    return np.cos(exact).astype(np.float32), np.sin(exact).astype(np.float32)
