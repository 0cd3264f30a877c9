"""The bias of local attention against the definition: |i - j| <= half_window, and j no padding."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from mbexport.checkpoint.spec import parse_config
from mbexport.graph.builder import GraphBuilder
from mbexport.graph.fused import SIZES as FUSED_SIZES
from mbexport.graph.portable import SIZES as PORTABLE_SIZES
from mbexport.graph.rows import PaddedRows
from mbexport.graph.windows import BlockSizes, any_false, build_windows, find_blind


def windows_of(mask: np.ndarray, half_window: int, sizes: BlockSizes) -> dict[str, np.ndarray]:
    """Positions, bias and blind queries, as the graph computes them."""
    config = {"model_type": "modernbert", "architectures": ["ModernBertForSequenceClassification"]}
    spec = dataclasses.replace(parse_config(config)[0], half_window=half_window)
    b = GraphBuilder({})
    attention_mask = b.input("mask", ir.DataType.BOOL, ["batch", "sequence"])
    rows = PaddedRows(attention_mask)
    windows, seen = build_windows(b, rows, spec, sizes, (spec.hidden_size,))
    blind = find_blind(b, seen, rows, spec)
    assert blind is not None
    outputs = {
        "several": (windows.several, ir.DataType.BOOL, []),
        "query_positions": (windows.query_positions, ir.DataType.INT64, ["q"]),
        "key_positions": (windows.key_positions, ir.DataType.INT64, ["k"]),
        "order": (windows.order, ir.DataType.INT64, ["sequence"]),
        "bias": (windows.bias, ir.DataType.FLOAT, ["rows", 1, "block", "span"]),
        "sees": (blind.sees, ir.DataType.BOOL, ["batch", "sequence", 1]),
        "any_blind": (any_false(b, blind.sees, "any_blind"), ir.DataType.BOOL, []),
    }
    for name, (value, dtype, shape) in outputs.items():
        b.output(value, name, dtype, shape)
    model = ir.to_proto(b.build("windows", "0", 20)).SerializeToString()
    return dict(zip(outputs, onnxruntime.InferenceSession(model).run(None, {"mask": mask}), strict=True))


@pytest.mark.parametrize("sizes", [PORTABLE_SIZES, FUSED_SIZES, BlockSizes(queries=16, most_alone=20)])
@pytest.mark.parametrize("half_window", [0, 1, 15, 63, 64, 65, 100])
@pytest.mark.parametrize("length", [1, 2, 64, 65, 66, 127, 128, 129, 256, 257, 300])
def test_every_pair_of_tokens_is_seen_as_defined(half_window: int, length: int, sizes: BlockSizes) -> None:
    rng = np.random.default_rng(length)
    mask = rng.random((2, length)) < 0.8
    found_by_graph = windows_of(mask, half_window, sizes)
    keys, bias = found_by_graph["key_positions"], found_by_graph["bias"]
    several = length > sizes.most_alone
    block = sizes.queries if several else length
    blocks = -(-length // block)
    span = block + 2 * half_window * several
    assert found_by_graph["several"] == several
    assert (len(found_by_graph["query_positions"]), len(keys)) == (blocks * block, blocks * span)
    assert bias.shape == (2 * blocks, 1, block, span)
    assert (found_by_graph["query_positions"][found_by_graph["order"]] == np.arange(length)).all()

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
        assert (found_by_graph["sees"][row, :, 0] == expected.any(axis=1)).all()
    assert found_by_graph["any_blind"] == (~found_by_graph["sees"]).any()
    assert np.isfinite(bias).all()
