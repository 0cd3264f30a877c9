"""What a build made: for people, for programs, and for the manifest."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mbexport.engines.products import Products
from mbexport.graph.rows import MOST_SCORE
from mbexport.manifest import Engine, Graph
from mbexport.options import QUANTIZED


class EarlierGraphWarning(UserWarning):
    """Engines of a bundle are of a graph that is no more in it; the message names them."""


@dataclass(frozen=True)
class ProfileReport:
    """An optimization profile, and the bytes of GPU memory that its activations take at its largest shape.

    None where the builder did not say.
    """

    profile: str
    activation_bytes: int | None


@dataclass(frozen=True)
class AttentionReport:
    """A layer's attention: ``kind`` is global or local; ``fused`` says that one kernel computes it."""

    layer: int
    kind: str
    fused: bool


@dataclass(frozen=True)
class EngineReport:
    """A build.

    Attributes:
        engine: the manifest's entry.
        why: why this builder was taken.
        profiles: in the engine's order.
        attention: a row for each attention layer of the graph; empty where the graph writes attention
            out in plain operators.
        products: what became of the graph's products in 8 bits; None where it has none.
        layers: of the network that was parsed.
        weight_bytes: GPU memory of the weights; None where the builder did not say.
        workspace: most bytes of scratch memory that were allowed; None for the builder's default.
        seconds: from the parser's start to the serialized engine, of the build that stands.
        peak_bytes: most memory of the builder's process; None where the system does not say.
        warnings: what a user should know before this engine goes into production.
    """

    engine: Engine
    why: str
    profiles: tuple[ProfileReport, ...]
    attention: tuple[AttentionReport, ...]
    products: Products | None
    layers: int
    weight_bytes: int | None
    workspace: int | None
    seconds: float
    peak_bytes: int | None
    warnings: tuple[str, ...]

    @property
    def fused_text(self) -> str:
        """How many attention layers one kernel computes, e.g. ``22 of 22 layers``."""
        if not self.attention:
            return "none: the graph writes attention in plain operators"
        return f"{sum(row.fused for row in self.attention)} of {len(self.attention)} layers"

    @property
    def loose_text(self) -> str:
        """The layers whose attention is several kernels, e.g. ``the local layers 1, 2``; empty where there are none."""
        return _loose_layers(self.attention)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return dataclasses.asdict(self) | {"fused_attention": self.fused_text}


def scores_warning(graph: Graph) -> str | None:
    """The layers whose attention scores may be too large for FP16's mask, named; None where there are none."""
    if not graph.unheld:
        return None
    return (
        f"{graph.file}: the weights allow attention scores beyond {MOST_SCORE:.0f} in {', '.join(graph.unheld)}, and "
        "padding is surely masked only up to there; see what validate says of your texts, or take --precision bf16"
    )


def gate_warning(graph: Graph) -> str | None:
    """That a quantized graph is not known to predict as the FP32 graph does; None where it is, or is none."""
    if graph.precision not in QUANTIZED or graph.gate == "passed":
        return None
    found = "did not pass" if graph.gate == "failed" else "was not put through"
    return f"{graph.file} {found} mbexport int8's quality gate; see what validate says of your texts"


def fusion_warning(attention: tuple[AttentionReport, ...], engine: Engine) -> str | None:
    """The layers whose attention is several kernels, named; None where there are none."""
    if not attention:
        return f"{engine.graph} writes attention in plain operators, so nothing is known of its fusion; export again"
    layers = _loose_layers(attention)
    if not layers:
        return None
    return (
        f"{engine.file}: attention is not fused in {layers}, so it is slower and takes memory with the square "
        "of the length; fused kernels are there for fp16 and bf16 and head sizes of 16 to 256"
    )


def _loose_layers(attention: tuple[AttentionReport, ...]) -> str:
    loose: dict[str, list[str]] = {}
    for row in attention:
        if not row.fused:
            loose.setdefault(row.kind, []).append(str(row.layer))
    return " and ".join(f"the {kind} layers {', '.join(numbers)}" for kind, numbers in loose.items())
