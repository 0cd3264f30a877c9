"""Calls whose results become codes, as one call with that: numbers are coded while they are near."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from mbexport.graph.builder import FUNCTIONS
from mbexport.graph.fused import ADD_NORM, GATED_GELU
from mbexport.graph.products import CODES_OF_ROWS

BY_STEP, CODES = "QuantizeLinear", "Codes"
JOINED = (ADD_NORM, GATED_GELU)  # functions that are joined with what stands around them
RESULTS = "mbexport.results"  # the key of a joined call's metadata: JSON, what its results are called
SCALED = "Scaled"  # prefix: of a sum whose update has a factor for each token


def join_codes(model: ir.Model) -> None:
    """Join, in a graph that calls functions of mbexport's domain, what ``mbexport/native`` computes in one kernel.

    AddNorm and GatedGelu, the codes that their last result becomes, and the factors of tokens that an update is
    multiplied by in front of AddNorm become one call: ``[Scaled]AddNormCodes[OfRows]``, ``GatedGeluCodes[OfRows]``. It
    is a function whose body has the nodes of before. What only those nodes read is no result of the call: ONNX Runtime
    would keep it until the run ends. The call's metadata names it, for :func:`name_results`.
    """
    for node in list(model.graph):
        if node.domain == FUNCTIONS and node.op_type in JOINED:
            _join(model, node)


def _join(model: ir.Model, node: ir.Node) -> None:
    users = [user for user, _ in node.outputs[-1].uses()]
    if len(users) != 1 or users[0].op_type not in (BY_STEP, CODES_OF_ROWS):
        return
    codes, scaling = users[0], _scaling(node)
    name, inputs, nodes = node.op_type, list(node.inputs), [node, codes]
    outputs = [*node.outputs, *codes.outputs]
    if scaling is not None:
        name, nodes, outputs = SCALED + name, [scaling, *nodes], [*scaling.outputs, *outputs]
        inputs[1] = scaling.inputs[0]
        inputs.append(scaling.inputs[1])
    attributes = {key: attribute.as_float() for key, attribute in node.attributes.items()}
    if codes.op_type == BY_STEP:
        _, step, zero = codes.inputs
        if zero is None or zero.const_value is None:
            return
        name += CODES
        inputs.append(step)
        attributes["levels"] = float(zero.const_value.numpy()) - 1
    else:
        name += CODES_OF_ROWS
        attributes["levels"] = codes.attributes["levels"].as_float()
    key = (FUNCTIONS, name, "")
    if key not in model.functions:
        model.functions[key] = _function(name, nodes, inputs, outputs, attributes, model.graph.opset_imports)
    call = ir.node(name, inputs, attributes, domain=FUNCTIONS, num_outputs=len(outputs), name=node.name)
    ir.convenience.replace_nodes_and_values(model.graph, node, nodes, [call], outputs, call.outputs)
    call.metadata_props[RESULTS] = json.dumps([value.name for value in call.outputs])
    for value in call.outputs:
        if not value.uses() and not value.is_graph_output():
            value.name = ""


def name_results(model: ir.Model) -> None:
    """Have joined calls give all that they compute, by the names that it had before."""
    for node in model.graph:
        if RESULTS in node.metadata_props:
            for value, name in zip(node.outputs, json.loads(node.metadata_props[RESULTS]), strict=True):
                value.name = name


def _scaling(node: ir.Node) -> ir.Node | None:
    """What multiplies an update by factors of tokens, and is read by AddNorm alone."""
    update = node.inputs[1]
    scaling = update.producer() if node.op_type == ADD_NORM and update is not None else None
    if scaling is None or scaling.op_type != "Mul" or len(scaling.outputs[0].uses()) != 1:
        return None
    factors = scaling.inputs[1]
    of_rows = factors.producer() if factors is not None else None
    if of_rows is None or of_rows.domain != FUNCTIONS or not of_rows.op_type.endswith(CODES_OF_ROWS):
        return None
    return scaling


def _function(
    name: str,
    nodes: Sequence[ir.Node],
    inputs: Sequence[ir.Value | None],
    outputs: Sequence[ir.Value],
    attributes: Mapping[str, float],
    opsets: Mapping[str, int],
) -> ir.Function:
    """Copies of the nodes as a body; what they read besides the inputs is constant."""
    entered = [ir.val(f"input_{number}") for number in range(len(inputs))]
    inside: dict[ir.Value | None, ir.Value | None] = {None: None, **dict(zip(inputs, entered, strict=True))}
    body = []
    for node in nodes:
        for value in node.inputs:
            if value is not None and value not in inside:
                constant = ir.node("Constant", [], {"value": value.const_value}, name=value.name)
                constant.outputs[0].name, inside[value] = value.name, constant.outputs[0]
                body.append(constant)
        copy = ir.node(
            node.op_type,
            [inside[value] for value in node.inputs],
            {key: attribute.value for key, attribute in node.attributes.items()},
            domain=node.domain,
            num_outputs=len(node.outputs),
            name=node.op_type,
        )
        for number, value in enumerate(node.outputs):
            copy.outputs[number].name, inside[value] = f"{node.op_type}_{number}", copy.outputs[number]
        body.append(copy)
    results = [value for value in map(inside.get, outputs) if value is not None]
    graph = ir.Graph(entered, results, nodes=body, opset_imports=dict(opsets), name=name)
    declared = [ir.AttrFloat32(key, value) for key, value in attributes.items()]
    return ir.Function(FUNCTIONS, name, graph=graph, attributes=declared)
