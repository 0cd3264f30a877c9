"""Which texts run together: equal lengths only, so that padding is never computed."""

from __future__ import annotations

from collections.abc import Sequence

TOKEN_BUDGET = 16_384  # tokens of one run; bounds its memory


def group_by_length(lengths: Sequence[int], token_budget: int = TOKEN_BUDGET) -> list[list[int]]:
    """Numbers of the texts of each run, longest first.

    Args:
        lengths: tokens of each text.
        token_budget: tokens of one run at most; a text longer than that runs alone.
    """
    groups: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        length = lengths[number]
        last = groups[-1] if groups else []
        if last and lengths[last[0]] == length and (len(last) + 1) * length <= token_budget:
            last.append(number)
        else:
            groups.append([number])
    return groups
