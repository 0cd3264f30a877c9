"""Where TensorRT's timings of kernels are kept from one build to the next."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TimingCache:
    """The file; None where none is kept, and ``warning`` says why where one should be."""

    file: Path | None = None
    warning: str | None = None


def timing_cache(gpu: str) -> TimingCache:
    """The cache of a GPU; TensorRT finds by itself those of its own version in it.

    A build only takes longer without, so a place that cannot be used is no error. It is tried now:
    TensorRT would fail once all is built.
    """
    home = os.environ.get("XDG_CACHE_HOME")
    try:
        directory = Path(home or Path.home() / ".cache") / "mbexport"
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / f"{re.sub('[^a-z0-9-]', '-', gpu)}.timing"
        with tempfile.TemporaryFile(dir=directory):
            pass
        if file.exists():
            file.open("r+b").close()
    except (OSError, RuntimeError) as cause:  # RuntimeError: there is no home
        return TimingCache(
            warning=f"timings of kernels are not kept for the next build: {cause}; name a folder in XDG_CACHE_HOME"
        )
    return TimingCache(file)
