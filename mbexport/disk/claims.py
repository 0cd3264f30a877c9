"""A bundle is one command's at a time: others wait. Services, which only read, claim nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mbexport.disk.locking import locked
from mbexport.disk.temporary import remove_abandoned
from mbexport.disk.writing import cannot_write
from mbexport.files import Progress
from mbexport.manifest import FILE_NAME as MANIFEST

LOCK = ".mbexport.lock"


@contextmanager
def claimed(bundle: Path, progress: Progress, *, shared: bool = False) -> Iterator[None]:
    """Keep other commands from changing a bundle; wait for those that do, and remove what died ones left in it.

    Args:
        bundle: the bundle; nothing is claimed where there is none, which is for the command to say.
        progress: told of a wait.
        shared: others may read it at the same time. What is read-only needs no claim then.

    Raises:
        BundleError: the bundle is to be changed and cannot be written to.
    """
    with ExitStack() as stack:
        if (bundle / MANIFEST).is_file():
            try:
                stack.enter_context(locked(bundle / LOCK, shared=shared, waiting=_telling(bundle, progress)))
            except FileNotFoundError:
                pass  # it is gone
            except OSError as cause:
                if not shared:
                    raise cannot_write(bundle, cause) from cause
            if not shared:
                remove_abandoned(bundle)
        yield


def _telling(bundle: Path, progress: Progress) -> Callable[[], None]:
    return lambda: progress(0, 0, f"waiting until another command is done with {bundle}")
