"""What the graphs are made of: no quadratic tensor in local layers, few nodes, standard operators."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from mbexport.graph.fused import LONGEST_WITH_SCORES
from tests.inputs import GRAPHS

LENGTH = 4096  # larger than any weight's axis, so that an axis this long grows with the text


def static_shapes(graph: Path, directory: Path) -> dict[str, dict[str, list[int]]]:
    """By node (named as its first output), the shapes of its outputs for one text of LENGTH tokens.

    ONNX Runtime folds the arithmetic on shapes and keeps the branches that this length takes,
    then ONNX infers the shapes.
    """
    options = onnxruntime.SessionOptions()
    options.add_free_dimension_override_by_name("batch", 1)
    options.add_free_dimension_override_by_name("sequence", LENGTH)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(directory / "static.onnx")
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    model = onnx.load(directory / "static.onnx", load_external_data=False)
    standard = [stand_in for node in model.graph.node for stand_in in standard_nodes(node)]
    del model.graph.node[:]
    model.graph.node.extend(standard)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }
    by_node = {node.output[0]: {name: shapes[name] for name in node.output} for node in model.graph.node}
    for node in model.graph.node:
        if node.op_type == "Attention":  # what it holds inside
            queries, keys = (shapes[name] for name in node.input[:2])
            by_node[node.output[0]]["scores"] = [queries[0], queries[1], keys[1]]
    return by_node


def standard_nodes(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The node, or where it is ONNX Runtime's own, standard ones whose outputs have its outputs' shapes."""
    like = {"RotaryEmbedding": [0], "MultiHeadAttention": [0]}.get(node.op_type)
    if like is None or node.domain != "com.microsoft":
        return [node]
    if node.op_type == "MultiHeadAttention" and len(node.input) == 3:
        like = [2]  # as many keys as queries; the width of the values
    return [
        onnx.helper.make_node("Identity", [node.input[source]], [output], name=f"{node.name}:{number}")
        for number, (source, output) in enumerate(zip(like, node.output, strict=False))
        if output
    ]


def quadratic_nodes(by_node: dict[str, dict[str, list[int]]]) -> set[str]:
    """Nodes with an output of which two axes grow with the text."""
    return {
        node
        for node, outputs in by_node.items()
        for shape in outputs.values()
        if sum(size >= LENGTH for size in shape) >= 2
    }


@pytest.mark.parametrize("graph", GRAPHS)
def test_no_local_layer_holds_a_quadratic_tensor(graph: str, example_bundle: Path, tmp_path: Path) -> None:
    by_node = static_shapes(example_bundle / graph, tmp_path)
    config = json.loads((example_bundle / "config.json").read_text())
    local = [n for n, kind in enumerate(config["layer_types"]) if kind == "sliding_attention"]
    assert len(local) == 4
    # ONNX Runtime puts a prefix before the names of what was a branch, or in a function in the place of the layer's.
    places = ("_inlfunc_LocalAttention_", *(f"layers.{layer}/" for layer in local))
    nodes = {name: outputs for name, outputs in by_node.items() if any(place in name for place in places)}
    known = [shape for outputs in nodes.values() for shape in outputs.values()]
    assert len(known) > 80
    assert sum("scores" in outputs for outputs in nodes.values()) == (4 if graph == "onnx/model_ort.onnx" else 0)
    assert all(0 not in shape for shape in known)  # nothing escapes by an unknown axis
    assert not quadratic_nodes(nodes)
    places = ("local_attention/", "_inlfunc_LocalWindows_")
    shared = {name: outputs for name, outputs in by_node.items() if any(place in name for place in places)}
    assert shared
    assert not quadratic_nodes(shared)


def test_the_search_for_quadratic_tensors_finds_those_of_global_layers(example_bundle: Path, tmp_path: Path) -> None:
    """The control: the portable dialect's global layers do hold scores [sequence, sequence]."""
    found = quadratic_nodes(static_shapes(example_bundle / "onnx/model.onnx", tmp_path))
    assert {name.split("/")[0] for name in found} == {"layers.0", "layers.3"}


def test_the_search_for_quadratic_tensors_looks_into_attention(
    example_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the fused dialect: up to LONGEST_WITH_SCORES its global layers hold scores."""
    monkeypatch.setattr(f"{__name__}.LENGTH", LONGEST_WITH_SCORES)
    found = quadratic_nodes(static_shapes(example_bundle / "onnx/model_ort.onnx", tmp_path))
    assert {layer for layer in range(6) for name in found if f"layers.{layer}/" in name} == {0, 3}


def test_fused_global_layers_hold_no_scores_of_long_texts(example_bundle: Path, tmp_path: Path) -> None:
    assert not quadratic_nodes(static_shapes(example_bundle / "onnx/model_ort.onnx", tmp_path))
    # What depends on the padding is still a branch, of operators without scores.
    nodes = onnx.load(tmp_path / "static.onnx", load_external_data=False).graph.node
    branches = [attribute.g for node in nodes if node.op_type == "If" for attribute in node.attribute]
    assert len(branches) == 4
    assert {node.op_type for branch in branches for node in branch.node} == {"Reshape", "Concat", "MultiHeadAttention"}


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_pass_onnx_own_checker(graph: str, example_bundle: Path) -> None:
    onnx.checker.check_model(example_bundle / graph, full_check=graph == "onnx/model.onnx")


def test_portable_graph_has_standard_operators_only(example_bundle: Path) -> None:
    domains = {}
    for graph in GRAPHS:
        model = onnx.load(example_bundle / graph, load_external_data=False)
        domains[graph] = (
            {node.domain for node in model.graph.node},
            {node.domain for function in model.functions for node in function.node},
        )
    assert domains == {
        "onnx/model.onnx": ({""}, set()),
        "onnx/model_ort.onnx": ({"", "mbexport"}, {"", "com.microsoft"}),
    }


def test_both_dialects_read_one_weights_file(example_bundle: Path) -> None:
    places = []
    for graph in GRAPHS:
        model = onnx.load(example_bundle / graph, load_external_data=False)
        external = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        places.append({t.name: tuple((entry.key, entry.value) for entry in t.external_data) for t in external})
        inside = sum(t.ByteSize() for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL)
        assert inside < 100_000
    assert places[0] == places[1]
    assert {dict(place)["location"] for place in places[0].values()} == {"model.onnx_data"}
    assert [path.name for path in (example_bundle / "onnx").iterdir() if path.suffix != ".onnx"] == ["model.onnx_data"]


def test_same_input_gives_the_same_bytes(tiny: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    from mbexport import export_onnx

    export_onnx(tiny, tmp_path / "again")
    for path in sorted(tiny_bundle.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tiny_bundle)).read_bytes(), path.name


def test_weights_are_aligned_to_pages(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "onnx/model.onnx", load_external_data=False)
    offsets = [int(entry.value) for t in model.graph.initializer for entry in t.external_data if entry.key == "offset"]
    assert len(offsets) > 20
    assert not np.any(np.array(offsets) % 4096)
