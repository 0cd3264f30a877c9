"""Large files and directories, written safely: hashes on another core, directories that appear whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from mbexport.errors import BundleError
from mbexport.manifest import FILE_NAME as MANIFEST

MOST_PENDING = 64 * 2**20  # bytes that are written and not hashed yet, which stay in memory


def check_target(target: Path, *, force: bool, marker: str = MANIFEST, kind: str = "bundle") -> None:
    """Refuse a place that is taken; ``force`` gives leave to replace what mbexport wrote there, and only that.

    Args:
        target: the directory to make.
        force: replace it.
        marker: the file by which what may be replaced is known.
        kind: what that is called.

    Raises:
        BundleError: something is there that must not be replaced.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not force:
        raise BundleError(f"{target} exists; choose another place with -o, or replace it with --force")
    if not target.is_dir() or target.is_symlink():
        raise BundleError(f"{target} is no {kind}, so --force does not replace it; choose another place with -o")
    if any(target.iterdir()) and not (target / marker).is_file():
        raise BundleError(
            f"{target} holds files and no {marker}, so it is no {kind} and --force does not replace it; "
            "choose another place with -o"
        )


def make_folder(path: Path) -> None:
    """Make a folder of a bundle, unless it is there.

    Raises:
        BundleError: something else is in its place.
        OSError: it cannot be made.
    """
    try:
        path.mkdir(exist_ok=True)
    except FileExistsError:
        raise BundleError(f"{path} is a file, expected a folder; move the file away") from None


def cannot_write(bundle: Path, cause: OSError) -> BundleError:
    """The error for what the file system refuses, about the very place where that is known."""
    named = cause.filename2 or cause.filename  # of a renaming the second
    place = Path(named) if isinstance(named, (str, os.PathLike)) else bundle
    if place != bundle and place.name.startswith("."):  # a temporary file, which nobody knows by its name
        place = place.parent
    return BundleError(f"{place} cannot be written: {cause.strerror or cause}")


class HashedFile:
    """A new file whose SHA-256 is computed on another core while it is written.

    Args:
        path: the file to write.

    Attributes:
        bytes: how many were written so far.
    """

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb", buffering=0)
        self._digest = hashlib.sha256()
        self._worker = ThreadPoolExecutor(1)
        self._pending: deque[tuple[Future[None], int]] = deque()
        self.bytes = 0

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.shutdown()
        self._stream.close()

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data``, which must not change afterwards."""
        while sum(size for _, size in self._pending) > MOST_PENDING:
            self._pending.popleft()[0].result()
        self._pending.append((self._worker.submit(self._digest.update, data), len(data)))
        rest = memoryview(data)
        while rest:
            rest = rest[self._stream.write(rest) :]
        self.bytes += len(data)

    def sha256(self) -> str:
        """SHA-256 of all that was written, in hexadecimal."""
        for future, _ in self._pending:
            future.result()
        return self._digest.hexdigest()


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
            try:
                os.replace(temporary, target)
            except OSError:
                with contextlib.suppress(OSError):
                    os.replace(aside, target)
                raise
            finally:
                shutil.rmtree(aside, ignore_errors=True)  # what cannot go is no failure
        else:
            os.replace(temporary, target)
    except OSError as cause:
        reason = cause.strerror or str(cause)
        raise BundleError(f"{target} cannot be written: {reason}; nothing was left there") from cause
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
