"""Whether this CPU's products of uint8 and int8 are exact: found by trying, which works on every architecture.

x86 CPUs with AVX2 or AVX-512 and without VNNI multiply pairs with VPMADDUBSW, which adds the two products in
16 bits and saturates: 255 * 127 + 255 * 127 becomes 32,767. ONNX Runtime does not say which kernel it took.
"""

from __future__ import annotations

import base64
import zlib
from functools import cache

import numpy as np
import onnxruntime

from mbexport.errors import BackendError
from mbexport.runtime.backends.ort import session_options

ROWS, INNER = 5, 64  # rows: a block of several, and one left over
LARGEST_ACTIVATION, LARGEST_WEIGHT = 255, 127
# An ONNX model of one MatMulIntegerToFloat: uint8 [rows, 64] by int8 [64, 32], all weights 127 and stored in the
# model, so that they are packed as those of a graph are; scales 1. tests/test_runtime_int8.py makes it again.
MODEL = (
    "eNrtls0OwUAUhTsUNzd+ppdE0pVYWoi1DWlCQmJnZddWCWmNTEfoSh/Ai3krRS36DObbnOSec/cfIEHkBbezkMpmo/HTwhkyF5mHldh3"
    "wyAPYoldO0uxvfiq31m5anUJFycV7AO5FvNQuGrc8EU0jA6+FLHYKYJ8HQ8eHKbQ42WHecuU3zUajUaj0fwdgxZnzlcqlqZhpJNNNxMO"
    "IuRQojpWyZTiGmMJpl5WJJ+CFYresZ35CTWxDmWC9/JzbP1UpYpm9mE4Jhq841hYFBPOXkL/L68="
)


@cache
def products_saturate() -> bool:
    """Whether sums of INT8 products are wrong here where activations use all 8 bits; tried once a process.

    Raises:
        BackendError: ONNX Runtime cannot run the product at all.
    """
    options = session_options()
    options.intra_op_num_threads = 1
    model = zlib.decompress(base64.b64decode(MODEL))
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        (sums,) = session.run(None, {"a": np.full((ROWS, INNER), LARGEST_ACTIVATION, np.uint8)})
    except Exception as cause:  # onnxruntime's errors share no public base class
        raise BackendError(f"ONNX Runtime {onnxruntime.__version__} cannot multiply in INT8: {cause}") from cause
    return bool((sums != INNER * LARGEST_ACTIVATION * LARGEST_WEIGHT).any())  # float32 holds it exactly
