"""Inputs for parity tests: every padding at a given length, and how errors are judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from mbexport.runtime.backends.ort import session_options

PADDINGS = ("none", "right", "left", "interleaved")
SPECIAL_LENGTHS = (1, 2, 63, 64, 65, 66, 127, 128, 129, 255, 256, 257)
GRAPHS = ("onnx/model.onnx", "onnx/model_ort.onnx")


def padded_batch(length: int, vocabulary: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask, [4, length]: one row for each of PADDINGS, a third of the places padded."""
    rng = np.random.default_rng([seed, length])
    ids = rng.integers(5, vocabulary, (len(PADDINGS), length))
    mask = np.ones_like(ids)
    third = length // 3
    if third:
        mask[1, -third:] = 0
        mask[2, :third] = 0
        mask[3, rng.permutation(length)[:third]] = 0
    return ids, mask


def run_graph(bundle: Path, graph: str, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The first output of a graph of a bundle, with mbexport's kernels, where there are some; they change nothing."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    own, others = (
        onnxruntime.InferenceSession(
            str(bundle / graph), session_options(own_kernels=own_kernels), providers=["CPUExecutionProvider"]
        ).run(None, inputs)[0]
        for own_kernels in (True, False)
    )
    counted = mask == 1 if own.ndim == 3 else ...
    # a number between two codes may take either of them
    limit = 0.05 * np.nanmax(np.abs(others)) if "int8" in graph else 2 * allowed_error(others)
    np.testing.assert_allclose(own[counted], others[counted], rtol=0, atol=limit)  # equal where not finite
    return own


def allowed_error(expected: np.ndarray) -> float:
    """2e-5 of the spread of the outputs, at least 1e-5."""
    return max(1e-5, 2e-5 * float(expected.max() - expected.min()))


def error(found: np.ndarray, expected: np.ndarray, mask: np.ndarray) -> float:
    """Largest absolute error; of hidden states [batch, sequence, hidden] only real tokens count."""
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    if found.ndim == 3:
        found, expected = found[mask == 1], expected[mask == 1]
    return float(np.abs(found - expected).max())
