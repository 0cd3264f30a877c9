from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from mbexport.errors import GraphError
from mbexport.graph.builder import GraphBuilder
from mbexport.graph.layers import activation


def builder(**weights: np.ndarray) -> GraphBuilder:
    return GraphBuilder({name: ir.tensor(array, name=name) for name, array in weights.items()})


def test_names_follow_scopes() -> None:
    b = builder()
    x = b.input("x", ir.DataType.FLOAT, ["batch", 2])
    with b.scope("layers.0"), b.scope("attn"):
        y = b.op("Relu", x, name="act")
    assert y.name == "layers.0/attn/act"
    assert y.producer().name == "layers.0/attn/act"


def test_name_used_twice_is_refused() -> None:
    b = builder()
    x = b.input("x", ir.DataType.FLOAT, [2])
    b.op("Relu", x, name="act")
    with pytest.raises(GraphError, match="act"):
        b.op("Relu", x, name="act")


def test_weight_that_does_not_exist_is_refused() -> None:
    with pytest.raises(GraphError, match=r"layers\.0\.Wo"):
        builder().weight("layers.0.Wo")


def test_weight_that_no_node_uses_is_refused() -> None:
    b = builder(used=np.ones(2, np.float32), forgotten=np.ones(2, np.float32))
    x = b.input("x", ir.DataType.FLOAT, [2])
    b.output(b.op("Add", x, b.weight("used"), name="sum"), "y", ir.DataType.FLOAT, [2])
    with pytest.raises(GraphError, match="forgotten"):
        b.build("g", "0")


def test_equal_constants_are_stored_once() -> None:
    b = builder()
    assert b.ints(1, 2) is b.ints(1, 2)
    assert b.ints(1, 2) is not b.ints(2, 1)


def test_unknown_activation_is_refused() -> None:
    b = builder()
    with pytest.raises(GraphError, match="snake"):
        activation(b, b.input("x", ir.DataType.FLOAT, [2]), "snake")
