"""What modules compute in an ONNX graph that says which of its values are theirs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.builder import TAPS
from mbexport.parity.diagnosis.taps import OUTPUTS, Taps, answer_outputs
from mbexport.parity.figures import FloatArray, units
from mbexport.parity.memory import MemoryGraph
from mbexport.parity.rounding import with_barriers
from mbexport.parity.samples import Case, places_of
from mbexport.runtime.backends.interface import POSITION_IDS

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
        packs: whether its rows hold several texts; here they hold one, without padding before or within it.

    Raises:
        BackendError: ONNX Runtime refuses the graph.
    """

    def __init__(self, file: Path, precision: str, spec: ModelSpec) -> None:
        self._file, self._rounds, self._spec = file, precision in HALF, spec
        model = ir.load(file)
        named = model.metadata_props.get(TAPS)
        self._value_of: dict[str, str] = json.loads(named) if named else {}
        self.modules = frozenset(self._value_of)
        self.packs = any(entered.name == POSITION_IDS for entered in model.graph.inputs)

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
        arrays = {name: self._laid_out(array, case) for name, array in (given or {}).items() if name in value_of}
        inputs = _give(model, {value_of[name]: array for name, array in arrays.items()})
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
        taps = {
            name: self._of_texts(name, array, case) for name, array in zip(wanted, found[len(answers) :], strict=True)
        }
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
