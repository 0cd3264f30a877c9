"""Where symbolic links lead: they are followed, but not out of what came together. Standard library only."""

from __future__ import annotations

from pathlib import Path


def outside(path: Path, folder: Path) -> Path | None:
    """Where a path really lies, if that is no place of ``folder``; None if all is well.

    What Hugging Face's hub brought lies in its cache, ``models--NAME/blobs``, and folders of it hold links to there.

    Args:
        path: of something that there is.
        folder: where it should lie.
    """
    real = path.resolve()
    in_cache = real.parent.name == "blobs" and real.parent.parent.name.startswith("models--")
    return None if in_cache or folder.resolve() in real.parents else real
