"""Who may write where, among threads and processes. Standard library only."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    LOCKS_FOLDERS = False

    def _lock(handle: int, *, shared: bool, wait: bool) -> None:  # noqa: ARG001 (there are no shared locks)
        msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)  # tries for 10 seconds, or once

else:
    import fcntl

    LOCKS_FOLDERS = True

    def _lock(handle: int, *, shared: bool, wait: bool) -> None:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Wait until nobody else is in a block for the same ``path``: a file for that alone, gone afterwards.

    The system ends the lock of a process that died, so none is ever stale.

    Args:
        path: the file.
        shared: others may be in such a block, too, but for those that are not shared. (On Windows nobody may.)
        waiting: called before a wait that others are the reason of.

    Raises:
        OSError: the file cannot be made, e.g. in a place that is read-only.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock_at_last(handle, shared, waiting)
            if _is_at(handle, path):
                break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # who had the lock removed the file meanwhile, and others make a new one
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no file that is open, and others may share the lock
            if shared:
                _lock(handle, shared=False, wait=False)
            if _is_at(handle, path):
                path.unlink()
        os.close(handle)


def hold(path: Path, *, wait: bool = False) -> int | None:
    """Mark a file or folder as in use, until the handle is closed or the process ends.

    Args:
        path: the file or folder.
        wait: until others do not hold it any more, if they do.

    Returns:
        The handle; None where others hold it, it is gone, or there are no such marks (Windows; folders on NFS).
    """
    handle = None
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        if LOCKS_FOLDERS:
            _lock(handle, shared=False, wait=wait)
            if _is_at(handle, path):
                return handle
    if handle is not None:
        os.close(handle)
    return None


def _lock_at_last(handle: int, shared: bool, waiting: Callable[[], None] | None) -> None:
    if waiting is not None:
        with contextlib.suppress(OSError):
            return _lock(handle, shared=shared, wait=False)
        waiting()
    return _lock(handle, shared=shared, wait=True)


def _is_at(handle: int, path: Path) -> bool:
    """Whether ``path`` still is what was opened."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False
