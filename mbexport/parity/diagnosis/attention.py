"""ModernBERT's attention in float64 numpy, as it is and with faults, of single queries.

Written from the definitions: softmax(q k^T / sqrt(d)) v (Vaswani et al., 2017, section 3.2), positions by rotation of
the halves of q and k (Su et al., RoFormer, 2021, section 3.4.2, in the order of transformers' ModernBERT), local
layers that see |i - j| <= local_attention // 2 (Warner et al., ModernBERT, 2024, section 2.1.2). No code of the graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mbexport.checkpoint.rope_config import RopeSpec
from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.rope import rope_tables
from mbexport.parity.figures import DoubleArray, FloatArray
from mbexport.parity.samples import IntArray


@dataclass(frozen=True)
class Rule:
    """How a layer attends.

    Attributes:
        rope: its rotation; None for none.
        scale: of scores.
        before, after: how many keys to either side a query sees, itself besides; None for all.
        sees_padding: whether padding counts as keys.
        key_shift: places that keys are rotated too far.
        interleaved: whether channels 2i and 2i + 1 are rotated together, in the place of i and i + d / 2.
    """

    rope: RopeSpec | None
    scale: float
    before: int | None = None
    after: int | None = None
    sees_padding: bool = False
    key_shift: int = 0
    interleaved: bool = False


def rule_of(spec: ModelSpec, *, is_global: bool) -> Rule:
    """What a model's layers of one kind do."""
    reach = None if is_global else spec.half_window
    return Rule(spec.global_rope if is_global else spec.local_rope, spec.head_dim**-0.5, reach, reach)


@dataclass(frozen=True)
class Projected:
    """One text: queries, keys and values, float32 [sequence, heads * head_dim], and real places, bool [sequence]."""

    q: FloatArray
    k: FloatArray
    v: FloatArray
    real: npt.NDArray[np.bool_]


def attend(text: Projected, queries: IntArray, heads: int, rule: Rule) -> DoubleArray:
    """What some queries of a text attend to.

    Args:
        text: the text.
        queries: their places.
        heads: of attention.
        rule: how to attend.

    Returns:
        float64 [queries, heads * head_dim].
    """
    length, width = text.q.shape
    size = width // heads
    q, k, v = (array.astype(np.float64).reshape(length, heads, size) for array in (text.q, text.k, text.v))
    q, k = _rotate(q, rule, 0)[queries], _rotate(k, rule, rule.key_shift)
    keys = np.arange(length)
    seen = np.ones((len(queries), length), bool) if rule.sees_padding else np.tile(text.real, (len(queries), 1))
    if rule.before is not None:
        seen &= keys >= queries[:, None] - rule.before
    if rule.after is not None:
        seen &= keys <= queries[:, None] + rule.after
    result = np.empty((len(queries), heads, size))
    for head in range(heads):  # one at a time: [queries, sequence] is the largest array
        scores = np.where(seen, rule.scale * (q[:, head] @ k[:, head].T), -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        result[:, head] = weights @ v[:, head] / weights.sum(axis=1, keepdims=True)
    return result.reshape(len(queries), width)


def _rotate(x: DoubleArray, rule: Rule, shift: int) -> DoubleArray:
    """Rotary positions on x [sequence, heads, head_dim]; place i is rotated as place i + shift."""
    if rule.rope is None:
        return x
    length, _, size = x.shape
    cos, sin = (table.astype(np.float64) for table in rope_tables(rule.rope, size, length + abs(shift)))
    places = np.abs(np.arange(length) + shift)
    cos, sin = cos[places, None], sin[places, None] * np.sign(np.arange(length) + shift)[:, None, None]
    first, second = (x[..., 0::2], x[..., 1::2]) if rule.interleaved else np.split(x, 2, axis=-1)
    rotated = first * cos - second * sin, second * cos + first * sin
    if rule.interleaved:
        return np.stack(rotated, axis=-1).reshape(x.shape)
    return np.concatenate(rotated, axis=-1)
