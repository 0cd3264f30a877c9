"""The runtime wrapper: texts in, answers out.

It imports numpy, onnxruntime and tokenizers; never torch, transformers or onnx. TensorRT and CUDA are
imported where a GPU and an engine for it are there.
"""

from __future__ import annotations

from mbexport.runtime.batcher import Batcher
from mbexport.runtime.fallback import FallbackWarning
from mbexport.runtime.graphs import QualityWarning
from mbexport.runtime.model import Model, TruncationWarning, load
from mbexport.runtime.observer import Observer

__all__ = ["Batcher", "FallbackWarning", "Model", "Observer", "QualityWarning", "TruncationWarning", "load"]
