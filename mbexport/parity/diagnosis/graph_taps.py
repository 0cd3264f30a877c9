"""What modules compute in an ONNX graph that says which of its values are theirs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.builder import TAPS
from mbexport.parity.diagnosis.taps import OUTPUTS, Taps, answer_outputs
from mbexport.parity.figures import FloatArray, units
from mbexport.parity.memory import MemoryGraph
from mbexport.parity.rounding import with_barriers
from mbexport.parity.samples import Case, places_of

HALF = ("fp16",)  # precisions whose every value has to be rounded on a CPU
POSITIONS = "positions"  # the input of a graph whose outputs are of chosen tokens only


class GraphTaps:
    """See :class:`mbexport.parity.diagnosis.taps.TapSource`.

    Args:
        file: the graph.
        precision: as the manifest names it.
        spec: the model.

    Attributes:
        modules: those whose results the graph names.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
    """

    def __init__(self, file: Path, precision: str, spec: ModelSpec) -> None:
        self._file, self._rounds, self._spec = file, precision in HALF, spec
        named = ir.load(file).metadata_props.get(TAPS)
        self._value_of: dict[str, str] = json.loads(named) if named else {}
        self.modules = frozenset(self._value_of)

    def taps(self, case: Case, modules: Collection[str], given: Mapping[str, FloatArray] | None = None) -> Taps:
        """See :meth:`TapSource.taps`.

        Args:
            case: the input.
            modules: paths.
            given: results of modules that all others are to read in the place of the graph's own.
        """
        model = ir.load(self._file)
        if self._rounds:
            with_barriers(model)
        values = {value.name: value for node in model.graph for value in node.outputs}
        value_of = {name: values[value] for name, value in self._value_of.items() if value in values}
        wanted = {name: value_of[name] for name in modules if name in value_of}
        inputs = _give(model, {value_of[name]: array for name, array in (given or {}).items() if name in value_of})
        for value in wanted.values():
            if value not in model.graph.outputs:
                value.dtype = ir.DataType.FLOAT
                model.graph.outputs.append(value)
        places = places_of(case, self._spec)
        selects = any(entered.name == POSITIONS for entered in model.graph.inputs)
        if selects and places is not None:
            inputs[POSITIONS] = places
        answers = answer_outputs(self._spec) if OUTPUTS in modules else ()
        names = [*answers, *(value.name or "" for value in wanted.values())]
        found = MemoryGraph(model, self._file.parent).run(case.input_ids, case.attention_mask, names, inputs)
        taps = dict(zip(wanted, found[len(answers) :], strict=True))
        if answers:
            taps[OUTPUTS] = units(found[: len(answers)], None if selects else places)
        return taps


def _give(model: ir.Model, arrays: Mapping[ir.Value, FloatArray]) -> dict[str, npt.NDArray[Any]]:
    """Make values that are given inputs of the graph; returns the arrays by the inputs' names."""
    inputs: dict[str, npt.NDArray[Any]] = {}
    for number, (source, array) in enumerate(arrays.items()):
        entered = ir.val(f"given_{number}", dtype=ir.DataType.FLOAT, shape=[None] * array.ndim)
        model.graph.inputs.append(entered)
        for user, index in list(source.uses()):
            user.replace_input_with(index, entered)
        inputs[f"given_{number}"] = array
    return inputs
