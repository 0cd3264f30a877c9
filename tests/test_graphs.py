"""What all graphs of a bundle have in common, whatever their dialect, precision and form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from mbexport import export_onnx
from mbexport import manifest as manifests
from mbexport.bundle.engine_graph import ensure_engine_graph
from tests.checkpoints import EXAMPLE
from tests.int8 import add_int8


def graphs(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    """A graph or a function, and the graphs of its branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def unread(model: onnx.ModelProto) -> list[str]:
    return [name for part in (model.graph, *model.functions) for name in unread_of(part)]


def unread_of(part: onnx.GraphProto | onnx.FunctionProto) -> list[str]:
    """Nodes of the graph, or of a function of it, that nothing reads."""
    nodes = [node for each in graphs(part) for node in each.node]
    read = {name for node in nodes for name in node.input}
    for each in graphs(part):
        read |= {output if isinstance(output, str) else output.name for output in each.output}
    return [node.name for node in nodes if read.isdisjoint(node.output)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("graphs") / "bundle"
    export_onnx(EXAMPLE, bundle, packed=True)
    for precision in ("fp32", "fp16", "bf16"):
        for packed in (False, True):
            ensure_engine_graph(bundle, precision, packed=packed)
    for bits in (8, 7):
        add_int8(bundle, f"model_int8_of_{bits}.onnx", bits=bits)
    return bundle


def test_every_node_of_every_graph_is_read(bundle: Path) -> None:
    files = [graph.file for graph in manifests.read(bundle).graphs]
    assert len(files) == 11
    for file in files:
        model = onnx.load(bundle / file, load_external_data=False)
        assert unread(model) == [], file
    for part, known in ((model.graph, model.graph.input[0].name), (model.functions[0], model.functions[0].input[0])):
        part.node.append(onnx.helper.make_node("Identity", [known], ["nobody"], name="idle"))
    assert unread(model) == ["idle", "idle"]
