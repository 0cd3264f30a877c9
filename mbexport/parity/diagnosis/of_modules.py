"""What may be wrong with modules that compute each token, or text, by itself: products, norms, gates, pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from mbexport.parity.diagnosis.causes import Hypothesis
from mbexport.parity.diagnosis.scene import Scene
from mbexport.parity.diagnosis.taps import OUTPUTS
from mbexport.parity.figures import DoubleArray, FloatArray
from mbexport.parity.samples import IntArray

_THEIRS = "the weights are those of layers.{}"
_MOST_SHIFTED = 64  # places that outputs are tried to be off by


def _erf(x: DoubleArray) -> DoubleArray:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))


ACTIVATION: dict[str, Callable[[DoubleArray], DoubleArray]] = {
    "gelu": lambda x: x * 0.5 * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "identity": lambda x: x,
}


def norm_hypotheses(scene: Scene, part: str, sample: IntArray) -> Iterator[Hypothesis]:
    """Of a layer normalization."""
    x = _entering_norm(scene, part)[sample].astype(np.float64)
    yield Hypothesis("missing norm", "the normalization is missing: its input comes out as it was", x)
    weight, bias, eps = scene.matrix(part), scene.bias(part), scene.spec.norm_eps
    if weight is None:
        return
    yield Hypothesis("norm", "the normalization has no weights: all are 1", _normed(x, eps))
    for other in (1e-12, 1e-6, 1e-5, 1e-3):
        if other != eps:
            words = f"the normalization has epsilon {other:g}, not {eps:g}"
            yield Hypothesis("epsilon", words, _normed(x, other) * weight + bias)
    swapped = {"final_norm": "embeddings.norm", "embeddings.norm": "final_norm"}
    others = [(f"it has the weights of {module}", module, "norm") for name, module in swapped.items() if name == part]
    if part.startswith("layers."):
        others += [(_THEIRS.format(layer), module, "layer order") for layer, module in _in_other_layers(scene, part)]
    for words, module, cause in others:
        if (theirs := scene.matrix(module)) is not None:
            yield Hypothesis(cause, words, _normed(x, eps) * theirs + scene.bias(module))


def _entering_norm(scene: Scene, part: str) -> DoubleArray | FloatArray:
    """What a normalization reads, [units, hidden]."""
    if part == "head.norm" and scene.spec.head is not None:
        return ACTIVATION[scene.spec.head.activation](scene.expected("head.dense").astype(np.float64))
    return scene.expected(scene.stage.given or "embeddings.tok_embeddings")


def _normed(x: DoubleArray, eps: float) -> DoubleArray:
    """Layer normalization without weights (Ba et al., 2016, equation 4)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    result: DoubleArray = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    return result


def gate_hypotheses(scene: Scene, part: str, sample: IntArray) -> Iterator[Hypothesis]:
    """Of the activation of one half times the other."""
    parent, own = part.rpartition(".")[0], scene.spec.activation
    value, gate = (scene.expected(f"{parent}.{name}")[sample].astype(np.float64) for name in ("Wi_input", "Wi_gate"))
    swapped = ACTIVATION[own](gate) * value
    yield Hypothesis("wrong weight", "the activation is taken of the gate, not of the input", swapped)
    for name, function in ACTIVATION.items():
        if name != own:
            yield Hypothesis("activation", f"the activation is {name}, not {own}", function(value) * gate)


def product_hypotheses(scene: Scene, part: str, module: str, sample: IntArray) -> Iterator[Hypothesis]:
    """Of ``x @ weight.T + bias``.

    Args:
        scene: the stage.
        part: what is computed.
        module: that holds the weight and the bias.
        sample: the units that are computed.
    """
    source = _input_of(scene, part)
    weight, bias = scene.matrix(module), scene.bias(module)
    if weight is None or source is None:
        return
    x = scene.expected(source)[sample].astype(np.float64)
    name = module.rpartition(".")[-1]
    if weight.shape[0] == weight.shape[1]:
        yield Hypothesis("transposed weight", f"the matrix {name} is transposed", x @ weight + bias)
    if not np.isscalar(bias):
        yield Hypothesis("missing bias", f"the bias of {name} is missing", x @ weight.T)
    is_normed = source.endswith("norm") and source != scene.stage.given
    if is_normed:
        yield Hypothesis("missing norm", f"{source} is missing", _stream(scene, sample) @ weight.T + bias)
    for sibling in _siblings(module):
        if (theirs := scene.matrix(sibling)) is not None and theirs.shape == weight.shape:
            words = f"{name} is multiplied with the matrix of {sibling.rpartition('.')[-1]}"
            yield Hypothesis("wrong weight", words, x @ theirs.T + bias)
    if module.startswith("layers."):
        for layer, other in _in_other_layers(scene, module):
            theirs = scene.matrix(other)
            if theirs is not None:
                yield Hypothesis("layer order", _THEIRS.format(layer), x @ theirs.T + scene.bias(other))
                norm = source.replace(f"layers.{scene.layer}.", f"layers.{layer}.")
                if is_normed and (weights := scene.matrix(norm)) is not None:  # the layer's normalization with it
                    normed = _normed(_stream(scene, sample), scene.spec.norm_eps) * weights + scene.bias(norm)
                    yield Hypothesis("layer order", _THEIRS.format(layer), normed @ theirs.T + scene.bias(other))


def _stream(scene: Scene, sample: IntArray) -> DoubleArray:
    """What a stage reads, [sample, hidden]."""
    assert scene.stage.given is not None
    return scene.expected(scene.stage.given)[sample].astype(np.float64)


def _input_of(scene: Scene, part: str) -> str | None:
    """The module whose result a product reads."""
    parts = scene.stage.parts
    if part.endswith("Wo") or part == OUTPUTS:
        place = parts.index(part)
        return parts[place - 1] if place else scene.stage.given
    return parts[0] if parts[0].endswith("norm") else scene.stage.given


def _siblings(module: str) -> list[str]:
    """Modules beside one that have matrices of the same shape."""
    parent, _, name = module.rpartition(".")
    groups = (("Wq", "Wk", "Wv"), ("Wi_input", "Wi_gate"))
    return [f"{parent}.{other}" for group in groups if name in group for other in group if other != name]


def _in_other_layers(scene: Scene, module: str) -> Iterator[tuple[int, str]]:
    """The same module of all other layers, the nearest first."""
    _, number, rest = module.split(".", 2)
    for layer in sorted(range(scene.spec.num_layers), key=lambda layer: abs(layer - int(number))):
        if layer != int(number):
            yield layer, f"layers.{layer}.{rest}"


def pooling_hypotheses(scene: Scene, sample: IntArray) -> Iterator[Hypothesis]:
    """Of one vector for a text; ``sample`` are numbers of texts."""
    sentence = scene.spec.sentence
    if sentence is not None and any(step.on == "token_embeddings" for step in sentence.steps):
        return  # what is pooled is not the encoder's own
    mask = scene.case.attention_mask[sample] == 1
    hidden = scene.reference["final_norm"][sample].astype(np.float64)
    yield Hypothesis("padding in the mean", "the mean is taken over padding, too", hidden.mean(axis=1))
    unnormed = _pooled(scene.reference[f"layers.{scene.spec.num_layers - 1}.mlp_residual"][sample], mask)
    right = scene.reference["pooled"][sample]
    for words, values in _pooled(hidden, mask).items():
        yield Hypothesis("pooling", f"what is pooled is {words}", values)
        if np.allclose(values, right, rtol=1e-3, atol=1e-4):  # the model's own
            yield Hypothesis("missing norm", "final_norm is missing", unnormed[words])


def _pooled(x: DoubleArray | FloatArray, mask: np.typing.NDArray[np.bool_]) -> dict[str, DoubleArray]:
    """x [texts, sequence, width], mask [texts, sequence] -> by words, [texts, width]."""
    texts, column, last = np.arange(len(x)), mask[..., None], mask.shape[1] - 1
    total = np.where(column, x, 0.0).sum(axis=1)
    return {
        "the mean of the real tokens": total / mask.sum(axis=1, keepdims=True),
        "the first place": x[:, 0].astype(np.float64),
        "the first real token": x[texts, mask.argmax(axis=1)].astype(np.float64),
        "the last place": x[:, -1].astype(np.float64),
        "the last real token": x[texts, last - mask[:, ::-1].argmax(axis=1)].astype(np.float64),
        "the largest of the real tokens": np.where(column, x, -np.inf).max(axis=1),
        "the sum of the real tokens": total,
    }


def output_hypotheses(scene: Scene, sample: IntArray) -> Iterator[Hypothesis]:
    """Of the last layer."""
    outputs = scene.expected(OUTPUTS)[sample]
    for shift in range(1, min(outputs.shape[-1], _MOST_SHIFTED)):
        words = f"outputs stand {shift} place{'s' if shift > 1 else ''} off their own"
        yield Hypothesis("permuted labels", words, np.roll(outputs, shift, axis=-1))
    yield Hypothesis("permuted labels", "outputs stand in reverse order", outputs[:, ::-1])
    head = scene.spec.head
    if head is not None and scene.spec.sentence is None:
        yield from product_hypotheses(scene, OUTPUTS, head.last_layer, sample)
