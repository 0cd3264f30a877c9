from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
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
        b.build("g", "0", 20)


def test_equal_constants_are_stored_once() -> None:
    b = builder()
    assert b.ints(1, 2) is b.ints(1, 2)
    assert b.ints(1, 2) is not b.ints(2, 1)


def test_only_the_chosen_branch_is_computed() -> None:
    b = builder(weight=np.array([2, 3], np.float32))
    x, flag = b.input("x", ir.DataType.FLOAT, [2]), b.input("flag", ir.DataType.BOOL, [])
    doubled = b.op("Mul", x, b.weight("weight"), name="scaled")
    y = b.choose(
        flag,
        lambda: b.op("Add", doubled, x, name="sum"),
        lambda: b.choose(flag, lambda: b.op("Neg", x, name="never"), lambda: b.op("Abs", x, name="abs"), name="inner"),
        name="outer",
    )
    b.output(y, "y", ir.DataType.FLOAT, [2])
    model = ir.to_proto(b.build("g", "0", 20))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    values = np.array([-1, 4], np.float32)
    assert session.run(None, {"x": values, "flag": np.array(True)})[0].tolist() == [-3, 16]
    assert session.run(None, {"x": values, "flag": np.array(False)})[0].tolist() == [1, 4]
    (node,) = [node for node in model.graph.node if node.op_type == "If"]
    assert [inner.name for inner in node.attribute[0].g.node] == ["outer_then/sum"]


def test_unknown_activation_is_refused() -> None:
    b = builder()
    with pytest.raises(GraphError, match="snake"):
        activation(b, b.input("x", ir.DataType.FLOAT, [2]), "snake")
