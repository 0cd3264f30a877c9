"""The bias of local attention against the definition: |i - j| <= half_window, and j no padding."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from mbexport.checkpoint.spec import parse_config
from mbexport.graph.builder import GraphBuilder
from mbexport.graph.windows import block_size, build_windows


def windows_of(mask: np.ndarray, half_window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Query positions, key positions, bias and sightedness, as the graph computes them."""
    config = {"model_type": "modernbert", "architectures": ["ModernBertModel"]}
    spec = dataclasses.replace(parse_config(config)[0], half_window=half_window)
    b = GraphBuilder({})
    windows = build_windows(b, b.input("mask", ir.DataType.BOOL, ["batch", "sequence"]), spec, (spec.hidden_size,))
    b.output(windows.query_positions, "queries", ir.DataType.INT64, ["q"])
    b.output(windows.key_positions, "keys", ir.DataType.INT64, ["k"])
    b.output(windows.bias, "bias", ir.DataType.FLOAT, ["rows", 1, "block", "span"])
    b.output(windows.sighted, "sighted", ir.DataType.BOOL, ["batch", "sequence", 1])
    model = ir.to_proto(b.build("windows", "0")).SerializeToString()
    return tuple(onnxruntime.InferenceSession(model).run(None, {"mask": mask}))


@pytest.mark.parametrize("half_window", [0, 1, 15, 63, 64, 65, 100])
@pytest.mark.parametrize("length", [1, 2, 64, 65, 66, 127, 128, 129, 300])
def test_every_pair_of_tokens_is_seen_as_defined(half_window: int, length: int) -> None:
    rng = np.random.default_rng(length)
    mask = rng.random((2, length)) < 0.8
    queries, keys, bias, sighted = windows_of(mask, half_window)
    block = min(length, block_size(half_window))
    blocks = -(-length // block)
    span = block if blocks == 1 else 2 * block
    assert (len(queries), len(keys)) == (blocks * block, blocks * span)
    assert bias.shape == (2 * blocks, 1, block, span)

    i, j = np.arange(length)[:, None], np.arange(length)[None, :]
    for row in range(2):
        expected = (np.abs(i - j) <= half_window) & mask[row]
        found = np.zeros_like(expected)
        for number in range(blocks):
            seen = bias[row * blocks + number, 0] == 0
            for query, key in np.argwhere(seen):
                position = number * block + query
                if position < length:  # queries after the end are cut off again
                    key_position = keys[number * span + key]
                    assert not found[position, key_position], "a key is counted twice"
                    found[position, key_position] = True
        assert (found == expected).all()
        assert (sighted[row, :, 0] == expected.any(axis=1)).all()
    assert np.isfinite(bias).all()
