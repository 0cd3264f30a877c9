"""Typed access to config.json: a wrong value is refused with the field's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mbexport.errors import CheckpointError

# Beyond any model that exists, and small enough that products of two stay far from 2**63.
LARGEST_DIMENSION = 2**24
SMALLEST = 1e-30  # number


class Fields:
    """Reads typed fields of one JSON object.

    Args:
        values: the object.
        where: how errors name it, e.g. ``config.json``.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._where = where

    def wrong(self, name: str, expected: str) -> CheckpointError:
        """The error for a field whose value is not one that can be used."""
        return CheckpointError(f"{self._where}: {name} is {self._values.get(name)!r:.120}, expected {expected}")

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(name) is not None

    def raw(self, name: str) -> Any:
        """The field as it stands, None where it is missing."""
        return self._values.get(name)

    def size(self, name: str, default: int | None = None, largest: int = LARGEST_DIMENSION) -> int:
        """A dimension: a whole number from 1 to ``largest``, 2**24."""
        value = self._values.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
            raise self.wrong(name, f"a whole number from 1 to {largest}")
        return value

    def number(self, name: str, default: float) -> float:
        """A number from 1e-30 to 1e30: float32 holds its square root and its inverse, too."""
        value = self._values.get(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not SMALLEST <= value <= 1 / SMALLEST:
            raise self.wrong(name, f"a number from {SMALLEST:g} to {1 / SMALLEST:g}")
        return float(value)

    def required_number(self, name: str) -> float:
        """A number from 1e-30 to 1e30 that must be there."""
        return self.number(name, 0.0)

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def choice(self, name: str, default: str, accepted: tuple[str, ...]) -> str:
        """One of the accepted texts."""
        value = self._values.get(name, default)
        if value not in accepted:
            raise self.wrong(name, f"one of {', '.join(accepted)}")
        return str(value)
