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
from contextlib import AbstractContextManager, contextmanager, nullcontext
from glob import escape
from pathlib import Path

from mbexport.disk.exchange import exchanged
from mbexport.disk.temporary import folder_beside
from mbexport.errors import BundleError, InputError, MbexportError
from mbexport.manifest import FILE_NAME as MANIFEST

ASIDE = "mbexport-old-"  # in the names of directories that were set aside
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


def check_space(place: Path, target: Path, needed: int) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        place: a folder on the disk.
        target: what is to be written.
        needed: bytes.

    Raises:
        BundleError: there is less room.
    """
    free = shutil.disk_usage(place).free
    if free < needed:
        raise BundleError(f"{target} needs {needed / 2**20:.0f} MiB and the disk has {free / 2**20:.0f} MiB left")


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
def new_directory(target: Path, *, replace: bool, alone: AbstractContextManager[None] | None = None) -> Iterator[Path]:
    """A temporary sibling that becomes ``target`` when the block ends without an error.

    Args:
        target: the directory to make.
        replace: it takes the place of an existing ``target`` in one step, where the file system has one. Where it has
            not, who is killed between two steps leaves the old one aside, and the next call puts it back.
        alone: a claim on ``target``, for the time in which it is replaced.

    Raises:
        BundleError: the file system refuses (full, read-only, not permitted, ...), or another command was faster.
        InputError: what was to be copied cannot be read.
    """
    parents = [folder for folder in target.parents if not folder.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _put_back(target)
        with folder_beside(target) as temporary:
            yield temporary
            with alone or nullcontext():
                _take_place(temporary, target, replace=replace)
    except OSError as cause:
        raise _refused(target, cause) from cause
    finally:
        for folder in parents:
            with contextlib.suppress(OSError):  # what is not empty stays
                folder.rmdir()


def _take_place(temporary: Path, target: Path, *, replace: bool) -> None:
    if not target.exists():
        os.replace(temporary, target)
    elif not replace:
        raise BundleError(
            f"{target} was made by another command meanwhile; choose another place with -o, or replace it with --force"
        )
    elif not exchanged(temporary, target):
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.{ASIDE}"))
        os.replace(target, aside)
        try:
            os.replace(temporary, target)
        except OSError:
            with contextlib.suppress(OSError):
                os.replace(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)  # what cannot go is no failure


def _put_back(target: Path) -> None:
    """Put a directory back that was set aside by who did not live to put another in its place; drop others."""
    for aside in target.parent.glob(f"{escape(f'.{target.name}.{ASIDE}')}*"):
        if not target.exists():
            os.replace(aside, target)
        else:
            shutil.rmtree(aside, ignore_errors=True)


def _refused(target: Path, cause: OSError) -> MbexportError:
    """The error for what the file system refuses while ``target`` is made."""
    reason = cause.strerror or str(cause)
    path = Path(os.fsdecode(cause.filename)) if isinstance(cause.filename, (str, bytes, os.PathLike)) else target
    ours = path in (target, *target.parents) or target in path.parents
    if ours or any(part.startswith(f".{target.name}.mbexport-") for part in path.parts):
        return BundleError(f"{target} cannot be written: {reason}; nothing was left there")
    return InputError(f"{path} cannot be read: {reason}")
