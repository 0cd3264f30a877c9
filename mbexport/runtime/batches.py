"""Which texts run together on a GPU.

A GPU is idle in a small batch, so texts run together up to a budget of tokens; beyond ENOUGH_TOKENS,
where it is busy, no more than MOST_PADDING of a run may be padding. Row lengths are rounded up, so that
shapes come again: TensorRT prepares itself for a shape when it first meets it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mbexport.errors import InputError
from mbexport.profiles import Profile
from mbexport.runtime.schedule import TOKEN_BUDGET, Run

# Chosen, not measured: no GPU was at hand when this was written.
ENOUGH_TOKENS = 2048  # of a run that keeps a GPU busy; below, another launch costs more than padding
MOST_PADDING = 0.1  # share of a run's places
LEAST_STEP = 8  # places; tensor cores want multiples of 8
OUTPUT_BYTES = 2**30  # of one run: logits over a vocabulary take 200 KB a token


@dataclass(frozen=True)
class Limits:
    """What a backend takes in one run: shapes by profile (none: any shape), and tokens."""

    profiles: tuple[Profile, ...] = ()
    tokens: int = TOKEN_BUDGET

    def row(self, length: int) -> int:
        """Places of a row for a text of ``length`` tokens: rounded up, within a profile that takes it.

        Raises:
            InputError: it is longer than every profile takes.
        """
        bounds = [profile.largest[1] for profile in self.profiles]
        if bounds and length > max(bounds):
            shapes = ", ".join(map(str, self.profiles))
            raise InputError(
                f"a text has {length} tokens, the engine takes at most {max(bounds)} (profiles {shapes}); "
                "build one for longer texts with mbexport trt, or load the bundle with device='cpu'"
            )
        return min([rounded(length), *(bound for bound in bounds if bound >= length)])

    def texts(self, row: int) -> int:
        """The most texts of ``row`` places in one run."""
        # By profile that takes such rows: what they are padded to there, and how many it takes.
        taken = [(max(row, p.smallest[1]), p.largest[0]) for p in self.profiles if p.largest[1] >= row]
        if not taken:
            return max(1, self.tokens // row)
        least = min(padded for padded, _ in taken)
        within_budget = max(1, self.tokens // least)  # padding takes memory as text does
        return min(within_budget, max(batch for padded, batch in taken if padded == least))


def rounded(length: int) -> int:
    """A length rounded up to a multiple of its sixteenth, or of 8 places."""
    step = max(LEAST_STEP, 1 << max(0, length.bit_length() - 5))
    return -(-length // step) * step


def token_budget(widths: Iterable[int]) -> int:
    """Tokens of one run, where each has outputs of so many float32 numbers."""
    return max(1, min(TOKEN_BUDGET, OUTPUT_BYTES // (4 * max(1, sum(widths)))))


def plan_batches(lengths: Sequence[int], limits: Limits, most_padding: float = MOST_PADDING) -> list[Run]:
    """Runs of all texts, longest rows first.

    Args:
        lengths: tokens of each text.
        limits: of the backend.
        most_padding: share of the places of a run beyond ENOUGH_TOKENS that may be padding.

    Raises:
        InputError: a text is longer than the backend takes; nothing has run then.
    """
    runs: list[Run] = []
    group: list[int] = []
    row = tokens = 0  # of the group: places of a row, real tokens
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if group and not _joins(len(group) + 1, tokens + lengths[number], row, limits, most_padding):
            runs.append(Run(tuple(group), row))
            group = []
        if not group:
            row, tokens = limits.row(lengths[number]), 0
        group.append(number)
        tokens += lengths[number]
    return [*runs, Run(tuple(group), row)] if group else runs


def _joins(texts: int, tokens: int, row: int, limits: Limits, most_padding: float) -> bool:
    """Whether a text joins a run, which would have ``texts`` texts and ``tokens`` real tokens then."""
    places = texts * row
    return texts <= limits.texts(row) and (places <= ENOUGH_TOKENS or places - tokens <= most_padding * places)
