"""What modules compute in an ONNX graph that says which of its values are theirs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from mbexport.bundle.weights import SEPARATED
from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.builder import FUNCTIONS, TAPS
from mbexport.graph.fused import ADD_NORM
from mbexport.graph.joined import name_results
from mbexport.graph.products import PRODUCT
from mbexport.parity.diagnosis.taps import OUTPUTS, Taps
from mbexport.parity.figures import FloatArray, units
from mbexport.parity.graphs.memory import MemoryGraph
from mbexport.parity.graphs.rounding import rounded
from mbexport.parity.samples import Case, answer_outputs, places_of
from mbexport.runtime.backends.interface import POSITION_IDS

HALF = ("fp16",)  # precisions whose every value has to be rounded on a CPU
PRODUCTS = ("MatMul", "Gemm", "FusedMatMul")
SKIP_NORM, SUM_OUTPUT = "SkipLayerNormalization", 3  # ONNX Runtime's; that output is the sum before the norm
POSITIONS = "positions"  # the input of a graph whose outputs are of chosen tokens only


@dataclass(frozen=True)
class Value:
    """A value of a graph."""

    name: str
    dtype: ir.DataType


class GraphTaps:
    """See :class:`mbexport.parity.diagnosis.taps.TapSource`.

    Args:
        file: the graph.
        precision: as the manifest names it.
        spec: the model.
        outputs: names of the outputs that are compared; None for those that mbexport's graphs have.
        values: what :func:`mbexport.parity.diagnosis.values.find_values` found in a graph that names none.

    Attributes:
        file: the graph's.
        precision: the graph's.
        modules: those whose results the graph names.
        packs: whether its rows hold several texts; here they hold one, without padding before or within it.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
    """

    def __init__(
        self,
        file: Path,
        precision: str,
        spec: ModelSpec,
        *,
        outputs: tuple[str, ...] | None = None,
        values: Mapping[str, Value] | None = None,
    ) -> None:
        self.file, self.precision, self._rounds, self._spec = file, precision, precision in HALF, spec
        self._outputs, self._is_foreign = outputs or answer_outputs(spec), values is not None
        model = ir.load(file)
        named = json.loads(model.metadata_props.get(TAPS) or "{}")
        self._value_of = {module: Value(name, ir.DataType.FLOAT) for module, name in named.items()} or dict(
            values or {}
        )
        self.modules = frozenset(part for module in self._value_of for part in _parts(module))
        self.packs = any(entered.name == POSITION_IDS for entered in model.graph.inputs)

    def taps(self, case: Case, modules: Collection[str], given: Mapping[str, FloatArray] | None = None) -> Taps:
        """See :meth:`TapSource.taps`.

        Args:
            case: the input.
            modules: paths.
            given: results of modules that all others are to read in the place of the graph's own.
        """
        model = load_plain(self.file)
        if self._rounds:
            model = rounded(model, is_foreign=self._is_foreign)
        values = {value.name: value for node in model.graph for value in node.outputs}
        value_of = {module: values[value.name] for module, value in self._value_of.items() if value.name in values}
        wanted = {module: value_of[module] for module in value_of if not set(_parts(module)).isdisjoint(modules)}
        inputs: dict[str, npt.NDArray[Any]] = {}
        for module, array in (given or {}).items():
            if module in value_of:
                typed = array.astype(self._value_of[module].dtype.numpy())
                inputs |= give(model, value_of[module], self._laid_out(typed, case), f"given_{len(inputs)}")
        for value in wanted.values():
            if value not in model.graph.outputs:
                model.graph.outputs.append(value)
        places = places_of(case, self._spec)
        selects = any(entered.name == POSITIONS for entered in model.graph.inputs)
        if selects and places is not None:
            inputs[POSITIONS] = places
        answers = self._outputs if OUTPUTS in modules else ()
        names = [*answers, *(value.name or "" for value in wanted.values())]
        found = MemoryGraph(model, self.file.parent).run(case.input_ids, case.attention_mask, names, inputs)
        taps: Taps = {}
        for name, array in zip(wanted, found[len(answers) :], strict=True):
            taps |= _apart(name, self._of_texts(name, array, case).astype(np.float32))
        if answers:
            ends = [self._of_texts(OUTPUTS, array, case) for array in found[: len(answers)]]
            taps[OUTPUTS] = units(ends, None if selects else places)
        return taps

    def _laid_out(self, array: FloatArray, case: Case) -> FloatArray:
        """What belongs to texts stands at each of their tokens in a graph that packs."""
        if not self.packs or array.ndim == 3:
            return array
        return np.repeat(array[:, None], case.length, axis=1)

    def _of_texts(self, module: str, array: FloatArray, case: Case) -> FloatArray:
        """The other way: of results that belong to texts, those at one token of each."""
        standing = self._spec.sentence or self._spec.head
        behind = module in ("pooled", OUTPUTS) or module.startswith("head.")
        if not self.packs or not behind or standing is None or standing.pooling is None:
            return array
        last = case.attention_mask.sum(axis=1) - 1
        chosen: FloatArray = array[np.arange(len(array)), last if standing.pooling == "last" else 0]
        return chosen


def give(model: ir.Model, value: ir.Value, array: npt.NDArray[Any], name: str) -> dict[str, npt.NDArray[Any]]:
    """Have all that reads a value read a new input of the graph.

    Args:
        model: the graph.
        value: the value.
        array: what is read in its place, in the value's element type.
        name: of the input.

    Returns:
        The array to feed, by that name.
    """
    entered = ir.val(name, dtype=ir.DataType.from_numpy(array.dtype), shape=[None] * array.ndim)
    model.graph.inputs.append(entered)
    for user, index in list(value.uses()):
        user.replace_input_with(index, entered)
    return {name: array}


def load_plain(file: Path) -> ir.Model:
    """A graph whose residual stream is added to by Add alone: operators that do more stand as their parts.

    Results of mbexport's own keep their names.
    """
    model = ir.load(file)
    name_results(model)
    InlinePass(_computes_several)(model)
    for node in list(model.graph):
        if node.op_type == SKIP_NORM:
            _split(model.graph, node)
    return model


def _computes_several(function: ir.Function) -> bool:
    """Whether a function of mbexport's graphs computes what belongs to several modules; or is a plain product."""
    return function.name in (ADD_NORM, PRODUCT) or any(node.domain == FUNCTIONS for node in function)


def _split(graph: ir.Graph, node: ir.Node) -> None:
    x, skip, weight, *further = node.inputs
    further += [None] * (2 - len(further))
    norm_bias, bias = further
    nodes = []
    if bias is not None:  # that of the product that is added: with it, it is the module's result
        maker = x.producer() if x is not None else None
        stream, product = (skip, x) if maker is not None and maker.op_type in PRODUCTS else (x, skip)
        nodes.append(ir.node("Add", [product, bias], name=f"{node.name}_bias"))
        nodes[0].outputs[0].name = f"{node.name}_biased"
        x, skip = stream, nodes[0].outputs[0]
    nodes.append(ir.node("Add", [x, skip], name=f"{node.name}_sum"))
    total = nodes[-1].outputs[0]
    total.name = f"{node.name}_total"
    epsilon = node.attributes["epsilon"].as_float()
    inputs = [total, weight] if norm_bias is None else [total, weight, norm_bias]
    normed = ir.node("LayerNormalization", inputs, {"axis": -1, "epsilon": epsilon}, name=f"{node.name}_norm")
    normed.outputs[0].name = f"{node.name}_normed"
    graph.insert_before(node, [*nodes, normed])
    node.outputs[0].replace_all_uses_with(normed.outputs[0], replace_graph_outputs=True)
    if len(node.outputs) > SUM_OUTPUT:
        node.outputs[SUM_OUTPUT].replace_all_uses_with(total, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _parts(module: str) -> list[str]:
    """The modules whose results stand side by side in a joined projection's, or the module itself."""
    parent, _, name = module.rpartition(".")
    return [f"{parent}.{part}" for part in SEPARATED[name]] if name in SEPARATED else [module]


def _apart(module: str, array: FloatArray) -> Taps:
    parts = _parts(module)
    if array.ndim > 3:  # by head
        array = array.reshape(*array.shape[:2], -1)
    return dict(zip(parts, np.split(array, len(parts), axis=-1), strict=True))
