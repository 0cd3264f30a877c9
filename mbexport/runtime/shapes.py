"""Shapes of an engine's tensors: which profile takes a batch, and how many bytes a tensor needs. No CUDA here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mbexport.profiles import Profile


@dataclass(frozen=True)
class Fit:
    """A profile, by number, and the shape [batch, length] that a batch is padded to in it."""

    profile: int
    batch: int
    length: int


def choose_profile(profiles: Sequence[Profile], batch: int, length: int) -> Fit | None:
    """The profile to run ``batch`` texts of ``length`` tokens in; None where none is large enough.

    A batch below a profile's smallest shape is padded up to it. Of several profiles the one that
    computes the fewest places is taken, then the one whose fastest shape is nearest.
    """
    best: tuple[tuple[float, ...], Fit] | None = None
    for number, profile in enumerate(profiles):
        padded = max(batch, profile.smallest[0]), max(length, profile.smallest[1])
        if not profile.accepts(*padded):
            continue
        away = sum(abs(math.log(size / at)) for size, at in zip(padded, profile.fastest, strict=True))
        cost = (math.prod(padded), away, number)
        if best is None or cost < best[0]:
            best = cost, Fit(number, *padded)
    return best[1] if best else None


def resolved(shape: Sequence[int], batch: int, length: int) -> tuple[int, ...]:
    """A tensor's shape in a run: the first two axes are [batch, length] where the engine leaves them open (-1)."""
    return tuple(size if size >= 0 else (batch, length)[axis] for axis, size in enumerate(shape))


def size_of(shape: Sequence[int], item_size: int) -> int:
    """Bytes of a tensor whose numbers have ``item_size`` bytes each."""
    return math.prod(shape) * item_size


STEP = 2 * 2**20  # the driver hands out device memory in pieces of 2 MiB


def grown(capacity: int, needed: int) -> int:
    """Bytes of a buffer that held ``capacity`` and now needs ``needed``.

    Half as much again, so that lengths which grow little by little do not allocate at each step.
    """
    if needed <= capacity:
        return capacity
    return math.ceil(max(needed, capacity * 3 // 2) / STEP) * STEP


def places_in(positions: Sequence[int], length: int, padded: int) -> list[int]:
    """Positions row * length + place, counted in rows of ``padded`` places instead."""
    return [position // length * padded + position % length for position in positions]
