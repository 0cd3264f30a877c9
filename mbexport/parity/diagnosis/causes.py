"""The causes that the search can name."""

from __future__ import annotations

from dataclasses import dataclass

from mbexport.parity.figures import DoubleArray, FloatArray

UNKNOWN = "unknown"
CAUSES = {
    "window": "local attention reaches less far, or farther",
    "window dropped": "local attention sees everything",
    "layer pattern": "other layers attend globally",
    "mask dropped": "padding counts",
    "causal": "later tokens are not seen",
    "theta": "positions are rotated with another base",
    "rope dropped": "positions are not rotated",
    "rope shifted": "queries and keys are rotated by different positions",
    "rope order": "other pairs of channels are rotated together",
    "scale": "values come out larger or smaller",
    "transposed weight": "a matrix is transposed",
    "layer order": "a layer has another layer's weights",
    "wrong weight": "a module has another module's weights",
    "missing bias": "a bias is missing",
    "missing norm": "a normalization is missing",
    "norm": "a normalization has other weights",
    "epsilon": "a normalization has another epsilon",
    "activation": "another activation function",
    "residual": "the residual stream is not added to as it should be",
    "pooling": "tokens become one vector in another way",
    "padding in the mean": "padding is averaged, too",
    "permuted labels": "outputs stand in another order",
    "score function": "outputs are no logits but something made of them",
    "overflow": "values leave the range of the element type",
    "quantization": "codes, scales or ranges of one part do not fit",
    "does not run": "ONNX Runtime fails on some inputs",
    UNKNOWN: "none of what is tried out",
}


@dataclass(frozen=True)
class Hypothesis:
    """A cause (a key of CAUSES), the same in words, and what it makes of the sampled units, [sample, width]."""

    cause: str
    words: str
    values: DoubleArray | FloatArray
