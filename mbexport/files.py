"""JSON files, read and written safely."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mbexport.errors import MbexportError

Progress = Callable[[int, int, str], None]  # done, of how many (0: it waits, nobody knows for how long), what
MAX_JSON_BYTES, LARGEST_TOKENIZER = 16 * 2**20, 256 * 2**20
MOST_NESTED = 100
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(path: Path, error: type[MbexportError]) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        error: as :func:`read_json_value`, or it is no object.
    """
    value = read_json_value(path, error)
    if not isinstance(value, dict):
        raise error(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def read_json_value(path: Path, error: type[MbexportError], largest: int = MAX_JSON_BYTES) -> Any:
    """The JSON value in ``path``, of whatever kind.

    Args:
        path: the file.
        error: what is raised.
        largest: bytes that are read at most; 16 MiB.

    Raises:
        error: as :func:`read_bounded`, or it is not JSON, nested more than 100 deep, or holds half a character.
    """
    content = read_bounded(path, error, largest)
    try:
        value = json.loads(content.decode("utf-8-sig"))
        if SURROGATE.search(content):  # pairs of them are characters by now
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        _check_depth(value)
    except (ValueError, RecursionError) as cause:  # not UTF-8, not JSON, nested too deep
        raise error(f"{path} is not valid JSON: {cause}") from cause
    return value


def read_bounded(path: Path, error: type[MbexportError], largest: int) -> bytes:
    """The content of a regular file: never of a device or a pipe, which may have no end or keep its reader waiting.

    Raises:
        error: the file is missing, of another kind, larger than ``largest`` bytes, or cannot be read.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as stream:
            state = os.fstat(stream.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise error(f"{path} is a device or a pipe, expected a file")
            if state.st_size > largest:
                raise error(f"{path} has {state.st_size} bytes; at most {largest} are read")
            return stream.read(state.st_size)  # what a file of the kernel's says besides is not waited for
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror}") from cause


def _open_at_once(path: str, flags: int) -> int:
    """Open also a pipe that nobody writes to."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


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


def is_plain_name(name: str) -> bool:
    """Whether a text names something in a folder itself, on every system."""
    return name not in ("", ".", "..") and not any(c in "/\\:" or ord(c) < ord(" ") for c in name)


def sha256(*paths: Path) -> str:
    """SHA-256 of one file, or of several as if they were one, in hexadecimal."""
    import hashlib

    digest = hashlib.sha256()
    buffer = memoryview(bytearray(2**20))  # one for all: new memory for each piece would take half of the time
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            while size := stream.readinto(buffer):
                digest.update(buffer[:size])
    return digest.hexdigest()


def to_json(value: Any) -> str:
    """Indented JSON that every parser reads: numbers that are not finite become texts."""

    def finite(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: finite(part) for key, part in item.items()}
        if isinstance(item, (list, tuple)):
            return [finite(part) for part in item]
        return repr(item) if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(finite(value), indent=2, allow_nan=False)


def put_in_place(temporary: Path, path: Path) -> None:
    """Let a file take the place of ``path`` in one step."""
    temporary.chmod(0o644)
    os.replace(temporary, path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty temporary sibling that takes the place of ``path`` when the block ends without an error."""
    from mbexport.disk.temporary import beside  # a runtime that only reads starts sooner without

    with beside(path) as temporary:
        try:
            yield temporary
        except OSError as cause:  # of a write that fails the system does not say where
            cause.filename = cause.filename or str(path)
            raise
        put_in_place(temporary, path)


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step: readers see the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def no_progress(done: int, total: int, what: str) -> None:
    """A Progress that shows nothing."""
