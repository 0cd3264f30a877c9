"""Which tokens and which channels are wrong, in words."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mbexport.parity.figures import FloatArray
from mbexport.parity.samples import Case, IntArray

MOST_NAMED = 5
SHARE_OF_WORST = 0.1  # a channel counts as wrong from this share of the worst one's error on


def tokens_in_words(bad: npt.NDArray[np.bool_], places: IntArray | None, case: Case, half_window: int) -> str:
    """Where the units that are wrong lie.

    Args:
        bad: which are, [units].
        places: of the units in the batch laid out in one row; None where units are texts.
        case: the input.
        half_window: how far local attention reaches.
    """
    rows = np.flatnonzero(bad) if places is None else np.unique(places[bad] // case.length)
    unit = f"texts of {case.length} tokens" if places is None else "tokens"
    words = [f"{int(bad.sum())} of {len(bad)} {unit}"]
    padded = [case.paddings[row] for row in rows]
    if "none" in case.paddings and padded and "none" not in padded:
        words.append(f"all in rows with padding ({', '.join(dict.fromkeys(padded))})")
    if places is not None and not bad.all():
        columns = np.sort(places[bad] % case.length)
        first, last = int(columns[0]), int(columns[-1])
        span = f"place {first}" if first == last else f"places {first} to {last}"
        words.append(f"{span} of {case.length}")
        if first == half_window + 1 or case.length - 1 - last == half_window + 1:
            words.append("where the window begins to cut")
    return ", ".join(words)


def channels_in_words(errors: FloatArray, heads: int) -> str:
    """Which channels are wrong.

    Args:
        errors: absolute, of units that are wrong, [units, width]; infinite where a value is not a number.
        heads: attention heads that the channels belong to; 1 where they belong to none.
    """
    by_channel = errors.max(axis=0)
    bad = by_channel >= SHARE_OF_WORST * by_channel.max() if np.isfinite(by_channel).all() else ~np.isfinite(by_channel)
    numbers = np.flatnonzero(bad)
    if bad.all() or len(numbers) > 0.9 * len(bad):
        return "all"
    if len(numbers) <= MOST_NAMED:
        return f"channel{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))} of {len(bad)}"
    words, in_heads = f"{len(numbers)} of {len(bad)}", np.unique(numbers // (len(bad) // heads))
    if heads > 1 and len(in_heads) <= heads // 2:
        return f"{words}, in attention head{'s' if len(in_heads) > 1 else ''} {', '.join(map(str, in_heads))}"
    return words
