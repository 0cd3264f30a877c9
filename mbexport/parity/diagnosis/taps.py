"""The values inside a model that two of them can be compared by: results of modules, by transformers' names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Protocol

from mbexport.checkpoint.spec import ModelSpec
from mbexport.parity.figures import FloatArray
from mbexport.parity.samples import Case

Taps = dict[str, FloatArray]
OUTPUTS = "outputs"  # what a comparison of whole graphs compares, [units, outputs]


class TapSource(Protocol):
    """Something that computes the model and gives out what its modules compute."""

    def taps(self, case: Case, modules: Collection[str]) -> Taps:
        """Results of modules, those of ``modules`` that there are.

        Args:
            case: the input.
            modules: paths of modules, as :func:`stages_of` names them.

        Returns:
            float32 [batch, sequence, width], or [batch, width] behind pooling; OUTPUTS are [units, outputs].
        """


@dataclass(frozen=True)
class Stage:
    """A part of the model that reads the residual stream once.

    Attributes:
        name: as reports call it.
        kind: as reports call it.
        given: the module whose result the stage reads; None for the embeddings, which read ids.
        parts: modules within it, in the order of computation. The last one's result is the stage's.
        total: the module that adds the result to the stream, where the stage has one.
    """

    name: str
    kind: str
    given: str | None
    parts: tuple[str, ...]
    total: str | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """All whose results the stage makes: its parts, and what adds the last one to the stream."""
        return self.parts if self.total is None else (*self.parts, self.total)


def stages_of(spec: ModelSpec) -> tuple[Stage, ...]:
    """All stages of a model, in the order of computation."""
    stages = [Stage("embeddings", "embeddings", None, ("embeddings.tok_embeddings", "embeddings.norm"))]
    stream = "embeddings.norm"
    for number, is_global in enumerate(spec.layer_is_global):
        layer = f"layers.{number}"
        norm = (f"{layer}.attn_norm",) if number else ()
        parts = (*norm, *(f"{layer}.attn.{part}" for part in ("Wq", "Wk", "Wv", "attended", "Wo")))
        kind = "global attention" if is_global else "local attention"
        stages.append(Stage(f"{layer}.attn", kind, stream, parts, f"{layer}.attn_residual"))
        inner = tuple(f"{layer}.mlp.{part}" for part in ("Wi_input", "Wi_gate", "gated", "Wo"))
        stages.append(
            Stage(
                f"{layer}.mlp", "mlp", f"{layer}.attn_residual", (f"{layer}.mlp_norm", *inner), f"{layer}.mlp_residual"
            )
        )
        stream = f"{layer}.mlp_residual"
    stages.append(Stage("final_norm", "norm", stream, ("final_norm",)))
    last = "final_norm"
    standing = spec.sentence or spec.head
    if standing is not None and standing.pooling is not None:
        stages.append(Stage("pooling", "pooling", last, ("pooled",)))
        last = "pooled"
    if standing is not None:
        head = ("head.dense", "head.norm") if spec.sentence is None else ()
        stages.append(Stage("head", "head", last, (*head, OUTPUTS)))
    return tuple(stages)


def cut(case: Case, most_tokens: int) -> Case:
    """The first rows of a case that hold so many tokens together; one row at least."""
    rows = slice(max(1, most_tokens // case.length))
    return replace(
        case, input_ids=case.input_ids[rows], attention_mask=case.attention_mask[rows], paddings=case.paddings[rows],
        texts=case.texts[rows],
    )  # fmt: skip
