"""All that is tried out: what a part of the model computes if just one thing is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator

from mbexport.parity.diagnosis.causes import Hypothesis
from mbexport.parity.diagnosis.of_attention import attention_hypotheses
from mbexport.parity.diagnosis.of_modules import (
    gate_hypotheses,
    norm_hypotheses,
    output_hypotheses,
    pooling_hypotheses,
    product_hypotheses,
)
from mbexport.parity.diagnosis.scene import Scene
from mbexport.parity.diagnosis.taps import OUTPUTS
from mbexport.parity.samples import IntArray

NORMS = ("norm", "attn_norm", "mlp_norm", "final_norm")


def hypotheses(scene: Scene, part: str, sample: IntArray) -> Iterator[Hypothesis]:
    """What is tried out for a part, computed as it is asked for.

    Args:
        scene: the stage.
        part: the module whose result is wrong, while those before it are right.
        sample: the units that are computed.
    """
    name = part.rpartition(".")[-1]
    if name == "attended":
        yield from attention_hypotheses(scene, sample)
    elif name in NORMS:
        yield from norm_hypotheses(scene, part, sample)
    elif name == "gated":
        yield from gate_hypotheses(scene, part, sample)
    elif name == "pooled":
        yield from pooling_hypotheses(scene, sample)
    elif part == OUTPUTS:
        yield from output_hypotheses(scene, sample)
    elif name != "tok_embeddings":
        yield from product_hypotheses(scene, part, part, sample)
