"""What may be wrong with a layer's attention, projections apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from mbexport.checkpoint.rope_config import DEFAULT_THETA, RopeSpec
from mbexport.parity.diagnosis.attention import Projected, Rule, attend, rule_of
from mbexport.parity.diagnosis.causes import Hypothesis
from mbexport.parity.diagnosis.scene import Scene
from mbexport.parity.figures import DoubleArray
from mbexport.parity.samples import IntArray

Tried = tuple[str, str, Rule]  # cause, words, what the layer would do


def attention_hypotheses(scene: Scene, sample: IntArray) -> Iterator[Hypothesis]:
    """Of what queries attend to: windows, masks, rotary positions, scales.

    Args:
        scene: the stage.
        sample: the units that are computed.
    """
    is_global = scene.spec.layer_is_global[scene.layer]
    rule = rule_of(scene.spec, is_global=is_global)
    tried = _of_a_global_layer(scene, rule) if is_global else _of_a_local_layer(scene, rule)
    for cause, words, changed in [*tried, *_of_any_layer(scene, rule, is_global=is_global)]:
        yield Hypothesis(cause, words, _attended(scene, sample, changed))


def _of_a_global_layer(scene: Scene, rule: Rule) -> Iterator[Tried]:
    half = scene.spec.half_window
    local = rule_of(scene.spec, is_global=False)
    yield "layer pattern", "the layer attends as local ones do; the model's attends globally", local
    yield "window", f"global attention has a window of {half} tokens to either side", _reach(rule, half)


def _of_a_local_layer(scene: Scene, rule: Rule) -> Iterator[Tried]:
    half, everything = scene.spec.half_window, _reach(rule, None)
    yield "window dropped", "local attention sees all tokens, not its window", everything
    yield "window dropped", "local attention sees all tokens, padding, too", replace(everything, sees_padding=True)
    other = rule_of(scene.spec, is_global=True)
    yield "layer pattern", "the layer attends as global ones do; the model's attends locally", other
    for reach in (half - 1, half + 1, half // 2, 2 * half, 2 * half - 1, 2 * half + 1):
        words = f"local attention reaches {reach} tokens to either side; the model's reaches {half}"
        yield "window", words, _reach(rule, reach)
    for before, after in ((half, half - 1), (half - 1, half)):
        words = f"local attention reaches {before} tokens back and {after} ahead; the model's reaches {half}"
        yield "window", words, replace(rule, before=before, after=after)


def _of_any_layer(scene: Scene, rule: Rule, *, is_global: bool) -> Iterator[Tried]:
    yield "mask dropped", "padding is attended to as if it were text", replace(rule, sees_padding=True)
    yield "causal", "tokens behind the query's own are not seen", replace(rule, after=0)
    for words, rope in _other_ropes(scene, is_global=is_global):
        yield "theta", f"positions are rotated with {words}", replace(rule, rope=rope)
    yield "rope dropped", "positions are not rotated", replace(rule, rope=None)
    for shift, side in ((1, "behind"), (-1, "before")):
        words = f"keys are rotated as if they stood one place {side} their own, or queries the other way"
        yield "rope shifted", words, replace(rule, key_shift=shift)
    words = "channels 2i and 2i + 1 are rotated together; the model rotates i and i + half a head"
    yield "rope order", words, replace(rule, interleaved=True)
    yield "scale", "scores are not scaled", replace(rule, scale=1.0)
    by_hidden = replace(rule, scale=scene.spec.hidden_size**-0.5)
    yield "scale", "scores are scaled by the hidden size, not by a head's", by_hidden


def _reach(rule: Rule, reach: int | None) -> Rule:
    return replace(rule, before=reach, after=reach)


def _other_ropes(scene: Scene, *, is_global: bool) -> list[tuple[str, RopeSpec]]:
    """Rotations that are not the layer's own, in words."""
    spec = scene.spec
    own, other = (spec.global_rope, spec.local_rope) if is_global else (spec.local_rope, spec.global_rope)
    kinds = [(f"the {'local' if is_global else 'global'} layers' theta, {other.theta:g}, not {own.theta:g}", other)]
    kinds += [(f"theta {theta:g}, not {own.theta:g}", RopeSpec(theta)) for theta in DEFAULT_THETA.values()]
    kinds.append((f"theta {own.theta:g} unscaled; the model scales it ({own.kind})", RopeSpec(own.theta)))
    return [(words, rope) for words, rope in kinds if rope != own]


def _attended(scene: Scene, sample: IntArray, rule: Rule) -> DoubleArray:
    """The reference's queries, keys and values attended to by a rule; [sample, hidden]."""
    assert scene.places is not None
    case, layer = scene.case, scene.stage.name
    rows, queries = np.divmod(scene.places[sample], case.length)
    result = np.empty((len(sample), scene.spec.hidden_size))
    for row in np.unique(rows):
        q, k, v = (scene.reference[f"{layer}.{part}"][row] for part in ("Wq", "Wk", "Wv"))
        text = Projected(q, k, v, case.attention_mask[row] == 1)
        result[rows == row] = attend(text, queries[rows == row], scene.spec.num_heads, rule)
    return result
