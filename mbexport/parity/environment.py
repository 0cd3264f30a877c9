"""What a comparison was made with: names and versions, for a reader."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform

import onnxruntime

from mbexport.processor import processor_name
from mbexport.version import __version__

PYTORCH = ("torch", "transformers", "sentence-transformers")


def environment(*, with_pytorch: bool) -> dict[str, str]:
    """Names and versions.

    Args:
        with_pytorch: whether PyTorch was the reference, so that its packages had a part.
    """
    packages = {name: version for name in PYTORCH if with_pytorch and (version := _version(name))}
    return {
        "mbexport": __version__,
        "onnxruntime": onnxruntime.__version__,
        **packages,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": processor_name(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
