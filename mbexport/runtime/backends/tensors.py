"""What every backend does with a graph's inputs and outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mbexport.runtime.backends.interface import POSITION_IDS, FloatArray, IntArray
from mbexport.runtime.packing import positions_of


def inputs_of(input_ids: IntArray, attention_mask: IntArray, *, packs: bool) -> dict[str, IntArray]:
    """A graph's inputs by name, each [batch, sequence]; of one that packs, the places of tokens in their texts, too."""
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    return inputs | {POSITION_IDS: positions_of(attention_mask)} if packs else inputs


def selected(
    outputs: Mapping[str, FloatArray], positions: IntArray, per_token: Collection[str]
) -> dict[str, FloatArray]:
    """The outputs, those of tokens, [batch, sequence, ...], at some positions only: [selected, ...]."""
    return {
        name: values.reshape(-1, *values.shape[2:])[positions] if name in per_token else values
        for name, values in outputs.items()
    }
