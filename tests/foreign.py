"""Graphs as somebody else's exporter may have written them: a portable graph without a bundle around it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

DATA = "model.onnx_data"


def foreign(bundle: Path, folder: Path, edit: Callable[[onnx.ModelProto], None] | None = None) -> Path:
    """A directory with model.onnx, its weights, config.json and what tokenizer there is."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if (bundle / name).is_file():
            shutil.copy(bundle / name, folder)
    shutil.copy(bundle / "onnx" / DATA, folder)
    model = onnx.load(bundle / "onnx" / "model.onnx", load_external_data=False)
    if edit is not None:
        edit(model)
    onnx.save(model, folder / "model.onnx")
    return folder


def behind_output(model: onnx.ModelProto, *nodes: tuple[str, dict[str, object], list[np.ndarray]]) -> None:
    """Put operators (type, attributes, further inputs) between the graph's only output and what made it."""
    name = model.graph.output[0].name
    maker = next(node for node in model.graph.node if name in node.output)
    maker.output[list(maker.output).index(name)] = current = f"{name}_before"
    for number, (kind, attributes, constants) in enumerate(nodes):
        inputs = [current]
        for place, constant in enumerate(constants):
            inputs.append(f"constant_{number}_{place}")
            model.graph.initializer.append(numpy_helper.from_array(constant, inputs[-1]))
        current = name if number == len(nodes) - 1 else f"{name}_{number}"
        model.graph.node.append(helper.make_node(kind, inputs, [current], **attributes))
