"""Optimization profiles: the shapes an engine accepts, and the one it is fastest at. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mbexport.errors import InputError

FORM = "BATCHxLENGTH:BATCHxLENGTH:BATCHxLENGTH (smallest, fastest, largest), e.g. 1x1:8x512:32x512"
MOST = 2**31 - 1  # what TensorRT counts in
Shape = tuple[int, int]  # texts, tokens of each


@dataclass(frozen=True)
class Profile:
    """Shapes [batch, sequence] of one optimization profile: smallest, the one to be fast at, largest."""

    smallest: Shape
    fastest: Shape
    largest: Shape

    def __str__(self) -> str:
        return ":".join(f"{batch}x{length}" for batch, length in (self.smallest, self.fastest, self.largest))

    @property
    def tokens(self) -> int:
        """Places of the largest batch."""
        return self.largest[0] * self.largest[1]

    def accepts(self, batch: int, length: int) -> bool:
        """Whether a batch of that shape may be run in it."""
        shape = zip((batch, length), self.smallest, self.largest, strict=True)
        return all(low <= size <= high for size, low, high in shape)


def parse_profile(text: str) -> Profile:
    """A profile from its text.

    Raises:
        InputError: another form, or shapes that do not grow from the first to the last.
    """
    shapes = []
    for part in text.split(":"):
        match = re.fullmatch(r"([0-9]{1,10})x([0-9]{1,10})", part.strip())
        if match is None:
            raise InputError(f"the profile is {text!r:.100}, expected {FORM}")
        shapes.append((int(match[1]), int(match[2])))
    if len(shapes) != 3:
        raise InputError(f"the profile {text!r} has {len(shapes)} shapes, expected three: {FORM}")
    smallest, fastest, largest = shapes
    for axis, low, middle, high in zip(("batch", "length"), smallest, fastest, largest, strict=True):
        if not 1 <= low <= middle <= high <= MOST:
            raise InputError(f"the profile {text!r}: {axis} is {low}:{middle}:{high}, expected to grow from 1")
    return Profile(smallest, fastest, largest)


def parse_profiles(text: str) -> tuple[Profile, ...]:
    """The profiles of an engine, as its manifest entry lists them, a comma between two.

    Raises:
        InputError: one of them is none.
    """
    return tuple(parse_profile(part) for part in text.split(","))


def profiles_text(profiles: Sequence[Profile]) -> str:
    """What :func:`parse_profiles` reads."""
    return ",".join(map(str, profiles))


def profile_text(profile: Profile) -> str:
    """An optimization profile in words.

    Args:
        profile: shapes [batch, sequence].
    """
    (few, short), (texts, length), (many, longest) = profile.smallest, profile.fastest, profile.largest
    batch = f"{many} text{'s' if many > 1 else ''}" if few == many else f"{few} to {many} texts"
    tokens = f"{longest} tokens" if short == longest else f"{short} to {longest} tokens"
    return f"{batch} of {tokens}, fastest at {texts} x {length}"
