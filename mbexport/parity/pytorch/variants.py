"""PyTorch as other models would be: the same weights, one setting changed, as exporters get them wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mbexport.checkpoint.rope_config import DEFAULT_THETA, GLOBAL, LOCAL
from mbexport.checkpoint.sentence_config import POOLING_OF
from mbexport.checkpoint.spec import ModelSpec

EPSILONS = (1e-12, 1e-6, 1e-5, 1e-3)
EVERY = 3  # layers, of which one is global where config.json does not say
Window = tuple[int, int] | None  # tokens to the left and to the right; None: all


class Altered:
    """A model with settings that are put back in the end.

    Args:
        model: a PyTorch model with a ModernBertModel somewhere in it.
        stack: puts things back.

    Attributes:
        model: the model.
        encoder: its ModernBertModel.
    """

    def __init__(self, model: torch.nn.Module, stack: ExitStack) -> None:
        self.model, self._stack = model, stack
        self.encoder: Any = next(part for part in model.modules() if type(part).__name__ == "ModernBertModel")

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Give an object's attribute another value."""
        self._stack.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    def attend(self, window: Window, *, masks_global: bool = True, masks_local: bool = True) -> None:
        """Compute masks by another window, or without those of padding."""

        def hook(_: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            real = named["attention_mask"].bool()
            masks = {GLOBAL: _mask(real, None, masked=masks_global), LOCAL: _mask(real, window, masked=masks_local)}
            return arguments, named | {"attention_mask": masks}

        self._stack.callback(self.encoder.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def pool_all(self) -> None:
        """Let the pooling see every place as a real token, and attention the real mask."""
        seen: dict[str, torch.Tensor] = {}

        def outer(_: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            features = named if "attention_mask" in named else arguments[0]
            seen["mask"] = features["attention_mask"]
            changed = features | {"attention_mask": torch.ones_like(seen["mask"])}
            return (arguments, changed) if features is named else ((changed, *arguments[1:]), named)

        def inner(_: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return arguments, named | {"attention_mask": seen["mask"].reshape(named["attention_mask"].shape)}

        for module, hook in ((self.model, outer), (self.encoder, inner)):
            self._stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


@dataclass(frozen=True)
class Variant:
    """A model that an exporter may have made by mistake: the cause, in words, and the change.

    ``reads_padding``: its outputs depend on what padded places hold.
    """

    cause: str
    explanation: str
    change: Callable[[Altered], None]
    reads_padding: bool = False


def variants(spec: ModelSpec) -> Iterator[Variant]:
    """The models to try, the likely ones first.

    Args:
        spec: of the unchanged model.
    """
    if spec.has_local:
        yield from _windows(spec.half_window)
    yield from _masks(spec)
    yield from _thetas(spec)
    yield from _poolings(spec)
    yield from _patterns(spec)
    yield from _activations(spec)
    for value in EPSILONS:
        if value != spec.norm_eps:
            words = f"the norms add {value:g} to the variance, not {spec.norm_eps:g}"
            yield Variant("epsilon", words, partial(_set_eps, value=value))


def _windows(half: int) -> Iterator[Variant]:
    yield Variant("window dropped", "local layers attend to all tokens", partial(Altered.attend, window=None))
    for left, right in ((half - 1,) * 2, (half + 1,) * 2, (half, half - 1), (half - 1, half), (2 * half,) * 2):
        sides = f"{left} tokens to the left and {right} to the right" if left != right else f"{left} tokens either way"
        words = f"local layers reach {sides}, not {half}"
        yield Variant("window", words, partial(Altered.attend, window=(left, right)))


def _masks(spec: ModelSpec) -> Iterator[Variant]:
    window = (spec.half_window, spec.half_window)

    def ignored(altered: Altered) -> None:
        altered.attend(window, masks_global=False, masks_local=False)

    def ignored_and_pooled(altered: Altered) -> None:
        altered.pool_all()
        ignored(altered)

    yield Variant("mask dropped", "attention does not leave padding out", ignored)
    if _pools(spec):
        words = "neither attention nor the pooling leaves padding out"
        yield Variant("mask dropped", words, ignored_and_pooled)
    words = "attention of the {} layers does not leave padding out"
    yield Variant("mask dropped", words.format("local"), partial(Altered.attend, window=window, masks_local=False))
    yield Variant("mask dropped", words.format("global"), partial(Altered.attend, window=window, masks_global=False))


def _thetas(spec: ModelSpec) -> Iterator[Variant]:
    base = {GLOBAL: spec.global_rope.theta, LOCAL: spec.local_rope.theta}
    if spec.has_global and spec.has_local and spec.global_rope != spec.local_rope:
        for words, from_ in (
            ("the rotary bases of global and local layers are swapped", {GLOBAL: LOCAL, LOCAL: GLOBAL}),
            (f"all layers rotate by the local layers' base, {base[LOCAL]:g}", {GLOBAL: LOCAL, LOCAL: LOCAL}),
            (f"all layers rotate by the global layers' base, {base[GLOBAL]:g}", {GLOBAL: GLOBAL, LOCAL: GLOBAL}),
        ):
            yield Variant("theta", words, partial(_exchange_ropes, taken_from=from_))
    if (spec.global_rope.kind, spec.local_rope.kind) != ("default", "default") or base != DEFAULT_THETA:
        defaults = f"{DEFAULT_THETA[GLOBAL]:g} and {DEFAULT_THETA[LOCAL]:g}"
        yield Variant(
            "theta",
            f"global and local layers rotate by the usual bases, {defaults}, without scaling: those of config.json "
            "(rope_parameters, which transformers before version 5 does not read) were not taken",
            _default_ropes,
        )


def _poolings(spec: ModelSpec) -> Iterator[Variant]:
    if not _pools(spec):
        return
    if spec.sentence is not None:
        pooling = str(spec.sentence.pooling)
        for mode, name in POOLING_OF.items():
            if name != pooling:
                words = f"texts are pooled by {name}, not {pooling}"
                yield Variant("pooling", words, partial(_pool, mode=mode))
    else:
        pooling = str(spec.head and spec.head.pooling)
        other = "mean" if pooling == "cls" else "cls"
        yield Variant("pooling", f"texts are pooled by {other}, not {pooling}", partial(_pool, mode=other))
    if pooling == "cls":
        words = "the first place of a text is pooled, also where that is padding"
        yield Variant("pooling", words, Altered.pool_all, reads_padding=True)
    else:
        words = f"padded places take part in the pooling ({pooling})"
        cause = "padding in the mean" if "mean" in pooling else "pooling"
        yield Variant(cause, words, Altered.pool_all, reads_padding=True)


def _patterns(spec: ModelSpec) -> Iterator[Variant]:
    own, count = spec.layer_is_global, spec.num_layers
    everywhere = (True,) * count
    if spec.has_local and spec.has_global:
        words = "all layers are global: none has a window, and all rotate by the global layers' base"
        yield Variant("window dropped", words, partial(_set_pattern, pattern=everywhere))
    tried = {own, everywhere}
    candidates = [
        ("the order of local and global layers is shifted by one", own[1:] + own[:1]),
        ("the order of local and global layers is shifted by one", own[-1:] + own[:-1]),
        (
            f"one layer of {EVERY} is global, from the first on, as transformers before version 5 has it where only "
            "layer_types of config.json says otherwise",
            _every(count, EVERY),
        ),
        *((f"one layer of {every} is global, from the first on", _every(count, every)) for every in (2, 4, 5, 6)),
        ("all layers are local", (False,) * count),
        ("global and local layers are exchanged", tuple(not layer for layer in own)),
    ]
    for words, pattern in candidates:
        if pattern in tried or not spec.has_global or not spec.has_local:
            continue
        tried.add(pattern)
        yield Variant("layer pattern", words, partial(_set_pattern, pattern=pattern))
    usual = {GLOBAL: spec.global_rope.theta, LOCAL: spec.local_rope.theta} == DEFAULT_THETA
    if own != _every(count, EVERY) and not usual and spec.has_global and spec.has_local:

        def unread(altered: Altered) -> None:
            _set_pattern(altered, _every(count, EVERY))
            _default_ropes(altered)

        yield Variant(
            "layer pattern",
            f"one layer of {EVERY} is global, and the rotary bases are the usual ones: layer_types and rope_parameters "
            "of config.json, which transformers before version 5 does not read, were not taken",
            unread,
        )


def _activations(spec: ModelSpec) -> Iterator[Variant]:
    parts = [("the MLPs", spec.activation, (".mlp",)), ("the head", spec.head and spec.head.activation, ("head",))]
    for name, own, ends in parts:
        other = {"gelu": ("tanh", "the tanh approximation of GELU"), "gelu_tanh": ("none", "the exact GELU")}
        if own in other:
            approximate, words = other[own]
            yield Variant(
                "activation",
                f"{name} compute {words}" if name.endswith("s") else f"{name} computes {words}",
                partial(_set_activation, approximate=approximate, ends=ends),
            )


def _mask(real: torch.Tensor, window: Window, *, masked: bool) -> torch.Tensor:
    """Which token sees which: bool [batch, 1, sequence, sequence]; a token that would see none sees all."""
    length = real.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool, device=real.device)
    if window is not None:
        places = torch.arange(length, device=real.device)
        distance = places[None, :] - places[:, None]  # how far to the right of i is j
        allowed = (distance >= -window[0]) & (distance <= window[1])
    result = allowed.expand(len(real), 1, length, length)
    if masked:
        result = result & real[:, None, None, :]
    return result | ~result.any(dim=-1, keepdim=True)


def _pools(spec: ModelSpec) -> bool:
    stage = spec.sentence or spec.head
    return stage is not None and stage.pooling is not None


def _every(count: int, every: int) -> tuple[bool, ...]:
    return tuple(layer % every == 0 for layer in range(count))


def _set_eps(altered: Altered, value: float) -> None:
    for part in altered.model.modules():
        if isinstance(part, torch.nn.LayerNorm):
            altered.set(part, "eps", value)


def _exchange_ropes(altered: Altered, taken_from: dict[str, str]) -> None:
    rope = altered.encoder.rotary_emb
    values = {
        f"{kind}_{name}": getattr(rope, f"{other}_{name}")
        for kind, other in taken_from.items()
        for name in ("inv_freq", "original_inv_freq", "attention_scaling")
    }
    for name, value in values.items():
        altered.set(rope, name, value)


def _default_ropes(altered: Altered) -> None:
    rope = altered.encoder.rotary_emb
    size = altered.encoder.config.hidden_size // altered.encoder.config.num_attention_heads
    for kind, theta in DEFAULT_THETA.items():
        if hasattr(rope, f"{kind}_inv_freq"):
            frequencies = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float) / size)
            altered.set(rope, f"{kind}_inv_freq", frequencies)
            altered.set(rope, f"{kind}_original_inv_freq", frequencies)
            altered.set(rope, f"{kind}_attention_scaling", 1.0)


def _set_pattern(altered: Altered, pattern: tuple[bool, ...]) -> None:
    for layer, is_global in zip(altered.encoder.layers, pattern, strict=True):
        altered.set(layer, "attention_type", GLOBAL if is_global else LOCAL)


def _pool(altered: Altered, mode: str) -> None:
    pipelines = [part for part in altered.model.modules() if hasattr(part, "pooling_mode")]
    for part in pipelines:
        altered.set(part, "pooling_mode", mode)
    if not pipelines:
        altered.set(altered.encoder.config, "classifier_pooling", mode)


def _set_activation(altered: Altered, approximate: str, ends: tuple[str, ...]) -> None:
    for name, part in altered.model.named_modules():
        if name.endswith(ends) and hasattr(part, "act"):
            altered.set(part, "act", torch.nn.GELU(approximate=approximate))
