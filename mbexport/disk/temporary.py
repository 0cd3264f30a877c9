"""What is written before it takes its place: a file or folder beside that, gone where it is not needed.

Who is killed leaves it behind. It is marked as in use while it is, so that the next command that writes to the same
place can tell, and removes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from mbexport.disk.locking import hold

TEMPORARY = "mbexport-tmp-"  # in the names of all of them


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """An empty file beside ``path``, for :func:`mbexport.files.put_in_place`; gone when the block ends without that."""
    with _in_use(path, _new_file) as temporary:
        yield temporary


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path``; what is there in its place when the block ends is removed."""
    with _in_use(path, _new_folder) as temporary:
        temporary.chmod(0o755)
        yield temporary


def remove_abandoned(folder: Path) -> None:
    """Remove what died commands left anywhere below a folder."""
    _remove_if_abandoned([*folder.rglob(f".*.{TEMPORARY}*")])


def _new_file(folder: Path, prefix: str) -> Path:
    handle, name = tempfile.mkstemp(dir=folder, prefix=prefix)
    os.close(handle)
    return Path(name)


def _new_folder(folder: Path, prefix: str) -> Path:
    return Path(tempfile.mkdtemp(dir=folder, prefix=prefix))


@contextmanager
def _in_use(path: Path, new: Callable[[Path, str], Path]) -> Iterator[Path]:
    prefix = f".{path.name}.{TEMPORARY}"
    _remove_if_abandoned(path.parent.glob(f"{escape(prefix)}*"))
    while True:
        temporary = new(path.parent, prefix)
        mark = hold(temporary, wait=True)
        if mark is not None or temporary.exists():
            break  # else another command took it for abandoned, before it was marked
    try:
        yield temporary
    finally:
        _remove(temporary)
        if mark is not None:
            os.close(mark)


def _remove_if_abandoned(temporaries: Iterable[Path]) -> None:
    for temporary in temporaries:
        mark = hold(temporary)
        if mark is not None:
            _remove(temporary)
            os.close(mark)


def _remove(temporary: Path) -> None:
    """Remove a file or folder; what cannot go is no failure."""
    if temporary.is_dir() and not temporary.is_symlink():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            temporary.unlink()
