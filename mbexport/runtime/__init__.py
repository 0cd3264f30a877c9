"""The runtime wrapper: texts in, answers out.

It imports numpy, onnxruntime and tokenizers; never torch, transformers or onnx.
"""

from __future__ import annotations

from mbexport.runtime.model import Model, TruncationWarning, load

__all__ = ["Model", "TruncationWarning", "load"]
