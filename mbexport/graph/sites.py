"""The sites of a layer: what its products with matrices read. Quantization works on these."""

from __future__ import annotations

from dataclasses import dataclass

from mbexport.checkpoint.spec import ModelSpec


@dataclass(frozen=True)
class Site:
    """A value that enters one or several products with matrices.

    ``name`` is ``layers.N.attn.in``, ``layers.N.attn.out``, ``layers.N.mlp.in`` or ``layers.N.mlp.gated``;
    ``matrices`` are the modules whose ``weight``, [in, out], it is multiplied with.
    """

    name: str
    matrices: tuple[str, ...]


def attention_input(layer: str) -> Site:
    """What queries, keys and values of ``layers.N`` are made of."""
    return Site(f"{layer}.attn.in", (f"{layer}.attn.Wq", f"{layer}.attn.Wk", f"{layer}.attn.Wv"))


def attention_output(layer: str) -> Site:
    """The attended values of ``layers.N``."""
    return Site(f"{layer}.attn.out", (f"{layer}.attn.Wo",))


def mlp_input(layer: str) -> Site:
    """What both halves of the gated MLP of ``layers.N`` are made of."""
    return Site(f"{layer}.mlp.in", (f"{layer}.mlp.Wi_input", f"{layer}.mlp.Wi_gate"))


def mlp_gated(layer: str) -> Site:
    """The activation times the gate of ``layers.N``."""
    return Site(f"{layer}.mlp.gated", (f"{layer}.mlp.Wo",))


def within(path: str, part: str) -> bool:
    """Whether a module or a site is a part of the model, or lies in it: ``layers.1.mlp.in`` in ``layers.1``."""
    return path == part or path.startswith(f"{part}.")


def encoder_sites(spec: ModelSpec) -> tuple[Site, ...]:
    """All sites of a model, in the order of computation."""
    kinds = (attention_input, attention_output, mlp_input, mlp_gated)
    return tuple(kind(f"layers.{number}") for number in range(spec.num_layers) for kind in kinds)
