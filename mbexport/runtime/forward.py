"""One forward pass: token ids into rows, and outputs back to the texts that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mbexport.manifest import Manifest
from mbexport.runtime.backends.interface import Backend, FloatArray, IntArray
from mbexport.runtime.schedule import Run

Outputs = dict[str, FloatArray]  # of one text, by name


def not_finite(outputs: Outputs) -> list[str]:
    """Names of a text's outputs that hold NaN or infinity."""
    return [name for name, values in outputs.items() if not np.isfinite(values).all()]


@dataclass(frozen=True)
class Layout:
    """A run's texts in rows.

    ``input_ids`` and ``attention_mask``: int64 [rows, length], as backends take them. ``starts`` and ``lengths``:
    int64 [texts], where each text begins, row * length + place, and its tokens. ``places``: int64, of all tokens,
    text by text.
    """

    input_ids: IntArray
    attention_mask: IntArray
    starts: IntArray
    lengths: IntArray
    places: IntArray

    def edges(self, pooling: str | None) -> IntArray:
        """int64 [texts]: the token of each that packed rows have the text's own outputs at."""
        return self.starts + self.lengths - 1 if pooling == "last" else self.starts


def lay_out(run: Run, token_ids: Sequence[IntArray]) -> Layout:
    """Put a run's texts in rows.

    Args:
        run: which texts, and where they stand.
        token_ids: of all texts, int64 [tokens] each.
    """
    lengths = np.array([len(token_ids[number]) for number in run.texts])
    starts = np.arange(run.rows) * run.length if run.starts is None else np.array(run.starts)
    before = lengths.cumsum() - lengths  # tokens of the texts before each
    places = np.repeat(starts - before, lengths) + np.arange(lengths.sum())
    ids, mask = np.zeros((2, run.tokens), np.int64)  # padding holds any id
    ids[places] = np.concatenate([token_ids[number] for number in run.texts])
    mask[places] = 1 if run.starts is None else np.repeat(np.arange(len(lengths)) + 1, lengths)
    shape = run.rows, run.length
    return Layout(ids.reshape(shape), mask.reshape(shape), starts, lengths, places)


def forward(
    backend: Backend, run: Run, token_ids: Sequence[IntArray], manifest: Manifest, mask_id: int | None
) -> list[Outputs]:
    """The outputs of each of a run's texts, without its padding.

    Args:
        backend: computes it.
        run: which texts, and where they stand.
        token_ids: of all texts, int64 [tokens] each.
        manifest: of the bundle: which outputs are wanted, and what they belong to.
        mask_id: of the tokens that outputs are wanted of (fill-mask); None for those that answers are made of.

    Raises:
        BackendError: the forward pass failed.
    """
    rows = lay_out(run, token_ids)
    inputs, wanted = (rows.input_ids, rows.attention_mask), manifest.answer_outputs
    if mask_id is not None:
        masked = rows.input_ids.reshape(-1)[rows.places] == mask_id
        logits = backend.run(*inputs, rows.places[masked])["logits"]
        counts = np.add.reduceat(masked, rows.lengths.cumsum() - rows.lengths, dtype=np.int64)
        return [{"logits": values} for values in np.split(logits, counts.cumsum()[:-1])]
    if backend.packs and manifest.pools_texts:
        outputs = backend.run(*inputs, rows.edges(manifest.pooling), wanted)
        return [{name: values[number] for name, values in outputs.items()} for number in range(len(run.texts))]
    outputs = backend.run(*inputs, wanted=wanted)
    tokens = {name: outputs[name].reshape(-1, *outputs[name].shape[2:]) for name in outputs.keys() & backend.per_token}
    bounds = zip(rows.starts.tolist(), (rows.starts + rows.lengths).tolist(), strict=True)
    return [
        {name: tokens[name][start:end] if name in tokens else values[number] for name, values in outputs.items()}
        for number, (start, end) in enumerate(bounds)
    ]
