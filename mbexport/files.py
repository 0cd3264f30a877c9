"""Files, read and written safely: bounded JSON, hashes, directories that appear whole."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mbexport.errors import BundleError, MbexportError

Progress = Callable[[int, int, str], None]  # done, of how many, what was done last
MAX_JSON_BYTES = 16 * 2**20


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
        error: the file is missing, larger than 16 MiB, or not JSON.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise error(f"{path} has {size} bytes; at most {MAX_JSON_BYTES} are read")
        return json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror}") from cause
    except (ValueError, RecursionError) as cause:  # not UTF-8, not JSON, nested too deep
        raise error(f"{path} is not valid JSON: {cause}") from cause


def to_json(value: Any) -> str:
    """Indented JSON that every parser reads: numbers that are not finite become texts."""

    def finite(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: finite(part) for key, part in item.items()}
        if isinstance(item, (list, tuple)):
            return [finite(part) for part in item]
        return repr(item) if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(finite(value), indent=2, allow_nan=False)


def sha256(*paths: Path) -> str:
    """SHA-256 of one file, or of several as if they were one, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while chunk := stream.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


class HashedFile:
    """A new file whose SHA-256 is computed on another core while it is written.

    Args:
        path: the file to write.

    Attributes:
        bytes: how many were written so far.
    """

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        self._digest = hashlib.sha256()
        self._worker = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self.bytes = 0

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.shutdown()
        self._stream.close()

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``, which must not change afterwards."""
        if self._pending is not None:
            self._pending.result()  # one piece at a time in memory besides this one
        self._pending = self._worker.submit(self._digest.update, data)
        self._stream.write(data)
        self.bytes += len(data)

    def sha256(self) -> str:
        """SHA-256 of all that was written, in hexadecimal."""
        if self._pending is not None:
            self._pending.result()
        return self._digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step: readers see the old file or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def new_directory(target: Path, *, replace: bool) -> Iterator[Path]:
    """A temporary sibling that becomes ``target`` when the block ends without an error.

    Args:
        target: the directory to make.
        replace: an existing ``target`` is set aside and removed once the new one stands.

    Raises:
        BundleError: the file system refuses (full, read-only, not permitted, ...).
    """
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.tmp-"))
        temporary.chmod(0o755)
        yield temporary
        if replace and target.exists():
            aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old-"))
            os.replace(target, aside)
            os.replace(temporary, target)
            shutil.rmtree(aside, ignore_errors=True)  # the new one stands; what cannot go is no failure
        else:
            os.replace(temporary, target)
    except OSError as cause:
        reason = cause.strerror or str(cause)
        raise BundleError(f"{target} cannot be written: {reason}; nothing was left there") from cause
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def no_progress(done: int, total: int, what: str) -> None:
    """A Progress that shows nothing."""
