"""Modules' results in a graph that does not name them: found by their values, and by where the residual stream goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mbexport.bundle.weights import SEPARATED
from mbexport.checkpoint.spec import ModelSpec
from mbexport.parity.diagnosis.graph_taps import PRODUCTS, Value, give, load_plain
from mbexport.parity.diagnosis.scene import JOINED
from mbexport.parity.diagnosis.taps import Stage, Taps, TapSource, cut, stages_of
from mbexport.parity.figures import FloatArray
from mbexport.parity.graphs.memory import MemoryGraph
from mbexport.parity.samples import Case

MOST_TOKENS = 512  # of the inputs: all values of the graph are held in memory
SAME = 0.05  # error, as a share of their size, up to which values are a module's result; others are off by more than 1
STREAM = "embeddings.norm"
ADDITIONS = ("Add", "Sum")


def find_values(file: Path, case: Case, spec: ModelSpec, reference: TapSource) -> dict[str, Value]:
    """A graph's values, by the module that each is the result of.

    The residual stream is followed from the embeddings' norm: what is added to it is a stage's result. Given the
    reference's stream, what a stage computes right has the reference's values; what it does not is told by its place.

    Args:
        file: the graph.
        case: an input.
        spec: the model.
        reference: computes the model as it should be.

    Returns:
        Joined projections by their own names, ``Wqkv`` and ``Wi``. Empty where the stream cannot be followed.

    Raises:
        BackendError: ONNX Runtime cannot run the graph.
    """
    stages = stages_of(spec)
    case = _beginning(case)
    modules = {module for stage in stages for module in stage.modules}
    expected = _joined(reference.taps(case, modules))
    values = _all_values(file, case, {})
    start = _matching(expected[STREAM], values, case)
    if start is None:
        return {}
    found = _follow(load_plain(file), start, stages)
    streams = [stage.given for stage in stages if stage.given is not None and stage.given in found]
    given = {found[module]: expected[module].astype(values[found[module]].dtype) for module in streams}
    right = _all_values(file, case, given)
    for module, array in expected.items():
        if module not in found and (name := _matching(array, right, case)) is not None:
            found[module] = name
    named = _by_position(load_plain(file), found, stages)
    return {module: Value(name, ir.DataType.from_numpy(values[name].dtype)) for module, name in named.items()}


def _beginning(case: Case) -> Case:
    """So few tokens that all scores between them can be held, which grow with the square of a text's length."""
    if case.length <= MOST_TOKENS:
        return cut(case, MOST_TOKENS)
    first = cut(case, 1)  # which begins with real tokens: padding on the left stands further below
    ids, mask = first.input_ids[:, :MOST_TOKENS], first.attention_mask[:, :MOST_TOKENS]
    return replace(first, length=MOST_TOKENS, input_ids=ids, attention_mask=mask)


def _joined(taps: Taps) -> Taps:
    """Parts of joined projections put together, as other exporters leave them."""
    result = {}
    for module, array in taps.items():
        parent, _, name = module.rpartition(".")
        whole, number, _ = JOINED.get(name, (name, 0, 1))
        if whole == name:
            result[module] = array
        elif number == 0:
            parts = [taps[f"{parent}.{part}"] for part in SEPARATED[whole]]
            result[f"{parent}.{whole}"] = np.concatenate(parts, axis=-1)
    return result


def _all_values(file: Path, case: Case, given: dict[str, npt.NDArray[Any]]) -> dict[str, FloatArray]:
    """Every floating-point value of the main graph, some of them given."""
    model = load_plain(file)
    inputs: dict[str, npt.NDArray[Any]] = {}
    for value in [value for node in model.graph for value in node.outputs if value.name]:
        if value.name in given:
            inputs |= give(model, value, given[value.name], f"given_{len(inputs)}")
        elif value not in model.graph.outputs:
            value.type = value.shape = None  # ONNX Runtime infers what is not stated
            model.graph.outputs.append(value)
    names = [value.name or "" for value in model.graph.outputs]
    arrays = MemoryGraph(model, file.parent).run(case.input_ids, case.attention_mask, names, inputs)
    return {name: array for name, array in zip(names, arrays, strict=True) if np.issubdtype(array.dtype, np.floating)}


def _matching(expected: FloatArray, values: dict[str, FloatArray], case: Case) -> str | None:
    """The first value that is nearest to what a module should give; None where none is near."""
    best, name = SAME, None
    real = case.attention_mask == 1
    right = expected[real] if expected.ndim == 3 else expected
    size = float(np.sqrt((right.astype(np.float64) ** 2).mean()))
    for candidate, array in values.items():
        if array.size == expected.size and array.shape[:1] == expected.shape[:1]:
            found = array.reshape(expected.shape)
            found = (found[real] if expected.ndim == 3 else found).astype(np.float64)
            error = float(np.sqrt(((found - right) ** 2).mean())) / max(size, 1e-30)
            if error < best:
                best, name = error, candidate
    return name


def _follow(model: ir.Model, start: str, stages: tuple[Stage, ...]) -> dict[str, str]:
    """The residual stream behind each stage, and what each adds to it."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    stream, found = values[start], {STREAM: start}
    for stage in stages:
        if stage.total is None:
            continue
        added = [both for user, _ in stream.uses() if (both := _addition(user, stream)) is not None]
        if len(added) != 1:
            break
        update, stream = added[0]
        found[stage.parts[-1]], found[stage.total] = update.name or "", stream.name or ""
    return found


def _addition(node: ir.Node, stream: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """What a node adds to the stream, and the sum; None where it does not."""
    if node.op_type not in ADDITIONS:
        return None
    other = [value for value in node.inputs if value is not None and value is not stream]
    return (other[0], node.outputs[0]) if len(other) == 1 and other[0].producer() is not None else None


def _by_position(model: ir.Model, found: dict[str, str], stages: tuple[Stage, ...]) -> dict[str, str]:
    """Of stages that are wrong: what their place tells to be a norm, a joined projection, or a last product's input."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    for stage in stages:
        if stage.given not in found:
            continue
        entering = values[found[stage.given]]
        if stage.name == "final_norm" and (normed := _read_by(entering, "LayerNormalization")) is not None:
            found.setdefault("final_norm", normed.name or "")
        if stage.total is None or stage.parts[-1] not in found:
            continue
        places: dict[str, ir.Value | None] = {}
        if stage.parts[0].endswith("norm"):
            places[stage.parts[0]] = entering = _read_by(entering, "LayerNormalization") or entering
        parent = stage.parts[-1].rpartition(".")[0]
        places[f"{parent}.{'Wqkv' if parent.endswith('attn') else 'Wi'}"] = _with_bias(_read_by(entering, *PRODUCTS))
        places[stage.parts[-2]] = _operand(values[found[stage.parts[-1]]])
        for module, value in places.items():
            if value is not None and value.name in values and module not in found:
                found[module] = str(value.name)
    return found


def _read_by(value: ir.Value, *operators: str) -> ir.Value | None:
    """The first output of the only node of such an operator that reads a value."""
    nodes = [user for user, _ in value.uses() if user.op_type in operators]
    return nodes[0].outputs[0] if len(nodes) == 1 else None


def _with_bias(product: ir.Value | None) -> ir.Value | None:
    """A product's value, or the sum with its bias where a weight is added."""
    added = None if product is None else _read_by(product, "Add")
    if added is None or product is None:
        return product
    node = added.producer()
    constant = node is not None and any(it is not None and it.const_value is not None for it in node.inputs)
    return added if constant else product


def _operand(value: ir.Value) -> ir.Value | None:
    """What is multiplied with a matrix to give a value, perhaps with a bias added."""
    node = value.producer()
    if node is not None and node.op_type == "Add":
        node = next((it.producer() for it in node.inputs if it is not None and it.producer() is not None), None)
    return node.inputs[0] if node is not None and node.op_type in PRODUCTS else None
