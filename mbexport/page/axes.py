"""Axes of charts: where a value stands, and what is written beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_TICKS = 7  # of an axis of powers of ten


@dataclass(frozen=True)
class Tick:
    """A place of an axis, 0 to 1, and what is written there; ``minor`` ones are not on narrow screens."""

    place: float
    text: str
    minor: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis from ``low`` to ``high``.

    Attributes:
        label: what it shows, with the unit.
        low: the value at its begin; of a logarithmic one, its logarithm.
        high: at its end.
        ticks: what is written along it.
        base: of the logarithm; None for a linear axis.
    """

    label: str
    low: float
    high: float
    ticks: tuple[Tick, ...]
    base: int | None = None

    def place(self, value: float) -> float:
        """Where a value stands, 0 to 1; on a logarithmic axis 0 stands at the begin, what is not finite at the end."""
        if not math.isfinite(value):
            return 1.0
        if self.base is not None:
            if value <= 0:
                return 0.0
            value = math.log(value, self.base)
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def log_axis(label: str, values: Iterable[float], base: int = 10, margin: float = 0.0) -> Axis:
    """A logarithmic axis over all values; zeros and infinities get places of their own beyond the others.

    Args:
        label: what it shows, with the unit.
        values: 0 or more.
        base: 10 has its ticks written as ``1e-6``, 2 as they are.
        margin: room on either side, in powers of the base.
    """
    given = list(values)
    exponents = [math.log(value, base) for value in given if 0 < value < math.inf]
    first = math.floor(min(exponents, default=0) + 1e-9)
    last = max(math.ceil(max(exponents, default=1) - 1e-9), first + 1)
    has_zero, has_infinite = any(value <= 0 for value in given), not all(map(math.isfinite, given))
    low = first - (0.7 if has_zero else margin)
    high = last + (0.7 if has_infinite else margin)
    step = 1 if base == 2 else math.ceil((last - first) / (MOST_TICKS - 1))
    ticks = [
        Tick(
            (exponent - low) / (high - low),
            f"1e{exponent}" if base == 10 and exponent not in (0, 1) else f"{base**exponent:g}",
            minor=base == 2 and (last - exponent) % 2 == 1,
        )
        for exponent in range(last, first - 1, -step)
    ]
    ticks += [Tick(0.0, "0")] if has_zero else []
    ticks += [Tick(1.0, "∞")] if has_infinite else []
    return Axis(label, low, high, tuple(ticks), base)


def ordered_axis(label: str, names: Sequence[str | None], minor: Sequence[bool]) -> Axis:
    """An axis of things in their order, the values being their numbers from 0.

    Args:
        label: what it shows.
        names: what is written below each, None for nothing.
        minor: which of the names are left out on narrow screens.
    """
    count = len(names)
    ticks = (
        Tick((number + 0.5) / count, name, is_minor)
        for number, (name, is_minor) in enumerate(zip(names, minor, strict=True))
        if name is not None
    )
    return Axis(label, -0.5, count - 0.5, tuple(ticks))


def count_axis(label: str, counts: Iterable[int]) -> Axis:
    """A logarithmic axis of counts, on which one is more than nothing."""
    last = max(math.ceil(math.log10(max((*counts, 1))) - 1e-9), 1)
    low, step = -0.3, math.ceil((last + 1) / MOST_TICKS)
    texts = (f"{10**exponent}" if exponent < 4 else f"1e{exponent}" for exponent in range(0, last + 1, step))
    places = ((exponent - low) / (last - low) for exponent in range(0, last + 1, step))
    return Axis(label, low, last, tuple(map(Tick, places, texts)), 10)
