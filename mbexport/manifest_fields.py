"""Typed fields of a parsed ``mbexport.json``, each checked before it is used. Standard library only."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from mbexport.errors import BundleError
from mbexport.files import is_plain_name

LARGEST_LENGTH = 2**24  # tokens of a text
MOST = 2**63 - 1  # of whole numbers
LONGEST_NAME = 255  # bytes of a file's name


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Entry = TypeVar("Entry", bound=_Dataclass)


class Reader:
    """Takes typed fields out of a parsed manifest; an error, a BundleError, names file and field.

    Args:
        path: the file.
        raw: what it holds.
    """

    def __init__(self, path: Path, raw: dict[str, Any]) -> None:
        self._path = path
        self._raw = raw

    def wrong(self, key: str, expected: str) -> BundleError:
        """The error for a field that cannot be used."""
        found = repr(self._raw.get(key))[:80]
        return BundleError(f"{self._path}: {key} is {found}, expected {expected}; export again")

    def choice(self, key: str, accepted: tuple[str, ...]) -> str:
        """One of the accepted texts."""
        value = self._raw.get(key)
        if value not in accepted:
            raise self.wrong(key, f"one of {', '.join(accepted)}")
        return str(value)

    def positive(self, key: str, most: int) -> int:
        """A whole number from 1."""
        value = self._raw.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self.wrong(key, f"a positive whole number, at most {most}")
        return value

    def optional_text(self, key: str) -> str | None:
        """A text or None."""
        value = self._raw.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a text or null")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, empty where there is none."""
        value = self._raw.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of texts")
        return tuple(value)

    def labels(self) -> tuple[str, ...] | None:
        """Texts, or None."""
        return None if self._raw.get("labels") is None else self.texts("labels")

    def one(self, key: str, entry: type[Entry]) -> Entry:
        """An object as an entry."""
        return self._entry(key, self._raw.get(key), entry)

    def optional(self, key: str, entry: type[Entry]) -> Entry | None:
        """An object as an entry, or None."""
        return None if self._raw.get(key) is None else self.one(key, entry)

    def many(self, key: str, entry: type[Entry]) -> tuple[Entry, ...]:
        """A list of objects as entries, empty where there is none."""
        value = self._raw.get(key, [])
        if not isinstance(value, list):
            raise self.wrong(key, "a list")
        return tuple(self._entry(key, item, entry) for item in value)

    def _entry(self, key: str, value: object, entry: type[Entry]) -> Entry:
        wanted = {f.name: str(f.type) for f in dataclasses.fields(entry)}
        given = value if isinstance(value, dict) else {}
        # Fields came later than bundles did: a list that is missing is empty, what may be None is None.
        taken = {name: given.get(name, [] if kind == _TEXTS else None) for name, kind in wanted.items()}
        if not isinstance(value, dict) or not all(_is(taken[name], kind) for name, kind in wanted.items()):
            expected = ", ".join(f"{name}: {kind}" for name, kind in wanted.items())
            raise self.wrong(key, f"entries of {{{expected}}}")
        fields: dict[str, Any] = {n: tuple(item) if isinstance(item, list) else item for n, item in taken.items()}
        return entry(**fields)


def names_inside(file: str) -> bool:
    """Whether a text names a file below the bundle, on every system, as ``onnx/model.onnx`` does."""
    short = all(len(part.encode("utf-8", "replace")) <= LONGEST_NAME for part in file.split("/"))
    return short and file.isprintable() and all(map(is_plain_name, file.split("/")))


_TEXTS, _PROMPTS = "tuple[str, ...]", "dict[str, str]"
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "bool": (bool,), "dict[str, Any]": (dict,), _PROMPTS: (dict,), _TEXTS: (list,),
    "str | None": (str, type(None)), "int | None": (int, type(None)), "bool | None": (bool, type(None)),
}  # fmt: skip


def _is(value: object, kind: str) -> bool:
    """Whether a value of a JSON file has the type that a field states."""
    if isinstance(value, int) and not -MOST <= value <= MOST:
        return False
    inner = value if isinstance(value, list) else value.values() if isinstance(value, dict) and kind == _PROMPTS else ()
    return type(value) in _TYPES[kind] and all(isinstance(item, str) for item in inner)
