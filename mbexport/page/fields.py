"""Fields of a report that was read from a file: taken by name, held to their types."""

from __future__ import annotations

import math
from typing import Any


class Fields:
    """A JSON object of a report.

    Args:
        value: the object.
        name: what it is, for errors.

    Raises:
        ValueError: it is none; so does each method where a field is missing or of another type.
    """

    def __init__(self, value: object, name: str) -> None:
        if not isinstance(value, dict):
            raise ValueError(f"{name} is {value!r:.40}, expected an object")
        self._value: dict[str, Any] = value
        self._name = name

    def text(self, key: str) -> str:
        """A text."""
        return str(self._typed(key, (str,), "a text"))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts."""
        found = self._typed(key, (list, tuple), "a list of texts")
        if not all(isinstance(item, str) for item in found):
            raise self._wrong(key, "a list of texts")
        return tuple(found)

    def optional_texts(self, key: str) -> tuple[str, ...] | None:
        """A list of texts, or None."""
        return None if self._value.get(key) is None else self.texts(key)

    def flag(self, key: str) -> bool:
        """True or false."""
        return bool(self._typed(key, (bool,), "true or false"))

    def count(self, key: str) -> int:
        """A whole number."""
        return int(self._typed(key, (int,), "a whole number"))

    def optional_count(self, key: str) -> int | None:
        """A whole number, or None where nothing is known."""
        return None if self._value.get(key) is None else self.count(key)

    def number(self, key: str) -> float:
        """A number; one that is not finite stands in a file as a text."""
        found = self._value.get(key)
        if found in ("inf", "-inf", "nan"):
            return float(str(found))
        number = float(self._typed(key, (int, float), "a number"))
        return number if math.isfinite(number) else math.inf

    def optional_number(self, key: str) -> float | None:
        """A number, or None where nothing was measured."""
        return None if self._value.get(key) is None else self.number(key)

    def one(self, key: str) -> Fields:
        """An object."""
        return Fields(self._value.get(key), f"{self._name}.{key}")

    def optional(self, key: str) -> Fields | None:
        """An object, or None."""
        return None if self._value.get(key) is None else self.one(key)

    def many(self, key: str) -> tuple[Fields, ...]:
        """A list of objects."""
        found = self._typed(key, (list, tuple), "a list")
        return tuple(Fields(item, f"{self._name}.{key}[{number}]") for number, item in enumerate(found))

    def _typed(self, key: str, kinds: tuple[type, ...], expected: str) -> Any:
        found = self._value.get(key)
        if type(found) not in kinds:
            raise self._wrong(key, expected)
        return found

    def _wrong(self, key: str, expected: str) -> ValueError:
        return ValueError(f"{self._name}.{key} is {self._value.get(key)!r:.40}, expected {expected}")
