"""JSON files, read and written safely."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mbexport.errors import MbexportError

Progress = Callable[[int, int, str], None]  # done, of how many, what was done last
MAX_JSON_BYTES = 16 * 2**20
MOST_NESTED = 100
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path, error: type[MbexportError]) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        error: the file is missing, larger than 16 MiB, not JSON, or no object.
    """
    value = read_json_value(path, error)
    if not isinstance(value, dict):
        raise error(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def read_json_value(path: Path, error: type[MbexportError]) -> Any:
    """The JSON value in ``path``, of whatever kind.

    Raises:
        error: the file is missing, larger than 16 MiB, not JSON, nested more than 100 deep, or holds half a character.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise error(f"{path} has {size} bytes; at most {MAX_JSON_BYTES} are read")
        text = path.read_text("utf-8-sig")
        value = json.loads(text)
        if SURROGATE.search(text):  # pairs of them are characters by now
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        _check_depth(value)
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror}") from cause
    except (ValueError, RecursionError) as cause:  # not UTF-8, not JSON, nested too deep
        raise error(f"{path} is not valid JSON: {cause}") from cause
    return value


def _check_depth(value: Any) -> None:
    """Refuse what would bring a recursion to its end that goes through the value later."""
    level, depth = [value], 0
    while level := [inner for item in level for inner in _inner(item) if isinstance(inner, (dict, list))]:
        depth += 1
        if depth > MOST_NESTED:
            raise ValueError(f"it is nested more than {MOST_NESTED} deep")


def _inner(item: Any) -> Iterable[Any]:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


def to_json(value: Any) -> str:
    """Indented JSON that every parser reads: numbers that are not finite become texts."""

    def finite(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: finite(part) for key, part in item.items()}
        if isinstance(item, (list, tuple)):
            return [finite(part) for part in item]
        return repr(item) if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(finite(value), indent=2, allow_nan=False)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """An empty file beside ``path``, for :func:`put_in_place`; gone when the block ends without that."""
    import tempfile  # a runtime that only reads starts sooner without

    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def put_in_place(temporary: Path, path: Path) -> None:
    """Let a file take the place of ``path`` in one step."""
    temporary.chmod(0o644)
    os.replace(temporary, path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty temporary sibling that takes the place of ``path`` when the block ends without an error."""
    with beside(path) as temporary:
        yield temporary
        put_in_place(temporary, path)


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step: readers see the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def no_progress(done: int, total: int, what: str) -> None:
    """A Progress that shows nothing."""
