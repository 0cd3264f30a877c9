"""mbexport: fine-tuned ModernBERT to ONNX, and a small runtime for it.

The functions below are what the commands call. They are imported on first use, so that
``import mbexport.runtime`` stays light.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mbexport.errors import MbexportError
from mbexport.version import __version__

# ONNX Runtime 1.29 and later send usage data to their maker, from the moment they are imported; here nothing of
# mbexport's has imported them yet, and its child processes inherit this. Who wants it sent sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from mbexport.pipeline import build_engine, export_onnx, package, quantize_int8, validate

__all__ = ["MbexportError", "__version__", "build_engine", "export_onnx", "package", "quantize_int8", "validate"]


def __getattr__(name: str) -> Any:
    if name in ("build_engine", "export_onnx", "package", "quantize_int8", "validate"):
        from mbexport import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'mbexport' has no attribute {name!r}")
