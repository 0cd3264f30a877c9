"""Comparing graphs whose rows hold several texts: the reference's texts, laid out as the runtime lays them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mbexport.manifest import Manifest
from mbexport.parity.figures import FloatArray, units
from mbexport.parity.samples import Case, IntArray
from mbexport.runtime.batches import Limits
from mbexport.runtime.forward import lay_out
from mbexport.runtime.packing import plan_packed

AS_IN_A_ROW = ("none", "right")  # paddings of rows that the runtime would make the same text of


def packable(case: Case, places: IntArray | None) -> tuple[Case, IntArray | None, IntArray]:
    """What of a case packed rows can hold: texts without padding before or within them.

    Args:
        case: the case.
        places: the tokens whose outputs are compared; None where outputs belong to whole texts.

    Returns:
        The case of those rows, its places, and which of the units of the whole case they are, bool [units].
    """
    kept = np.array([padding in AS_IN_A_ROW for padding in case.paddings])
    smaller = Case(
        case.length, case.input_ids[kept], case.attention_mask[kept],
        tuple(padding for padding in case.paddings if padding in AS_IN_A_ROW),
        tuple(text for text, is_kept in zip(case.texts, kept, strict=True) if is_kept) if case.texts else (),
    )  # fmt: skip
    if places is None:
        return smaller, None, kept
    units_kept = kept[places // case.length]
    row_of = kept.cumsum() - 1  # numbers among the rows that are kept
    within = places[units_kept]
    return smaller, row_of[within // case.length] * case.length + within % case.length, units_kept


def packed_runner(
    run: Callable[[IntArray, IntArray], Sequence[FloatArray]], manifest: Manifest
) -> Callable[[Case, IntArray | None], FloatArray]:
    """A runner of cases that packs their texts.

    Args:
        run: from ids and text numbers [rows, length] to outputs [rows, length, ...], in the order of the graph.
        manifest: of the bundle: where the outputs of a text stand.
    """

    def answer(case: Case, places: IntArray | None) -> FloatArray:
        texts = [ids[mask == 1] for ids, mask in zip(case.input_ids, case.attention_mask, strict=True)]
        found: dict[int, FloatArray] = {}
        for plan in plan_packed([len(text) for text in texts], Limits()):
            rows = lay_out(plan, texts)
            values = units(run(rows.input_ids, rows.attention_mask), np.arange(plan.tokens))
            edges = rows.edges(manifest.pooling)
            for number, text in enumerate(plan.texts):
                start = rows.starts[number]
                found[text] = values[edges[number]] if places is None else values[start : start + rows.lengths[number]]
        if places is None:
            return np.stack([found[text] for text in range(len(texts))])
        return np.stack([found[place // case.length][place % case.length] for place in places.tolist()])

    return answer
