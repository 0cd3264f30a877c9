"""A small recorder of ONNX nodes: operations return values, names mirror module paths."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.tape import Tape

from mbexport.errors import GraphError

IR_VERSION = 10
MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators
FUNCTIONS = "mbexport"  # the domain of what a graph defines itself, of which mbexport/native has kernels,
WIDTH_STEP = 16  # for rows of a multiple of this
TAPS = "mbexport.taps"  # the key of a model's metadata: JSON, a value's name by the module that it is the result of

HALVES = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}

Dim = int | str


class GraphBuilder:
    """Records a graph.

    Args:
        weights: the tensors that :meth:`weight` may refer to, by name.
    """

    def __init__(self, weights: Mapping[str, ir.TensorProtocol]) -> None:
        self._weights = weights
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._main = self._tape = Tape()  # what is recorded into; the main one keeps all weights and constants
        self._scopes: list[str] = []
        self._names: set[str] = set()
        self._domains: set[str] = set()
        self._initializers: dict[str, ir.Value] = {}
        self._inputs: list[ir.Value] = []
        self._outputs: list[ir.Value] = []
        self._taps: dict[str, ir.Value] = {}
        self._functions: dict[str, ir.Function] = {}
        self._body: _Body | None = None  # of the function that is being recorded

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names made inside start with ``name/``, as a module's parameters do."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    @contextmanager
    def at(self, path: str) -> Iterator[str]:
        """The scope in which a module at ``path`` stands, whatever the one around it; gives the module's own name."""
        parent, _, name = path.rpartition(".")
        outer, self._scopes = self._scopes, [parent] if parent else []
        try:
            yield name
        finally:
            self._scopes = outer

    def _unique(self, name: str) -> str:
        path = "/".join([*self._scopes, name])
        if path in self._names:
            raise GraphError(f"two nodes would be called {path}; give one another name")
        self._names.add(path)
        return path

    def op(self, op_type: str, *inputs: ir.Value | None, name: str, domain: str = "", **attributes: Any) -> ir.Value:
        """Record an operation with one output.

        Args:
            op_type: the operator.
            inputs: its inputs in order; None for one left out.
            name: unique within the scope.
            domain: the operator's domain, empty for standard ONNX.
            attributes: its attributes.

        Raises:
            GraphError: the name is taken.
        """
        return self.multi(op_type, *inputs, outputs=1, name=name, domain=domain, **attributes)[0]

    def multi(
        self, op_type: str, *inputs: ir.Value | None, outputs: int, name: str, domain: str = "", **attributes: Any
    ) -> Sequence[ir.Value]:
        """Record an operation with several outputs; otherwise as :meth:`op`."""
        path = self._unique(name)
        self._domains.add(domain)
        values = self._tape.op_multi_out(
            op_type, list(inputs), attributes, num_outputs=outputs, domain=domain, name=path
        )
        for number, value in enumerate(values):
            value.name = path if number == 0 else f"{path}:{number}"
        return values

    def choose(
        self, condition: ir.Value, then: Callable[[], ir.Value], otherwise: Callable[[], ir.Value], *, name: str
    ) -> ir.Value:
        """Record an If: only the branch that a call needs is computed in it.

        Args:
            condition: bool scalar.
            then: records the branch of a true condition; returns its value, made inside.
            otherwise: the same for a false one.
            name: unique within the scope, and the scope of what the branches record.
        """
        branches: dict[str, Any] = {}
        for key, record in (("then", then), ("else", otherwise)):
            outer, self._tape = self._tape, Tape()
            with self.scope(f"{name}_{key}"):
                value = record()
            path = self._unique(f"{name}_{key}")
            branches[f"{key}_branch"] = ir.Graph([], [value], nodes=self._tape.nodes, name=path)
            self._tape = outer
        return self.op("If", condition, name=name, **branches)

    def call(
        self,
        function: str,
        *inputs: ir.Value,
        body: Callable[..., Sequence[ir.Value]],
        name: str,
        **attributes: int | float,
    ) -> Sequence[ir.Value]:
        """Record a call of a function of the graph's own, which a runtime may compute by one operator.

        Args:
            function: its name; one that was called before has the same body.
            inputs: its inputs in order.
            body: given as many values, records what it computes of them; returns its outputs. It sees
                nothing else but constants.
            name: unique within the scope; of the first output.
            attributes: told to the operator; the body has them as constants.
        """
        if function not in self._functions:
            self._functions[function] = self._record(function, len(inputs), body, attributes)
        outputs = len(self._functions[function].outputs)
        return self.multi(function, *inputs, outputs=outputs, name=name, domain=FUNCTIONS, **attributes)

    def _record(
        self,
        function: str,
        inputs: int,
        body: Callable[..., Sequence[ir.Value]],
        attributes: Mapping[str, int | float],
    ) -> ir.Function:
        """The function, recorded apart from the graph."""
        outer = self._tape, self._scopes, self._names, self._body
        own = self._body = _Body()
        self._tape, self._scopes, self._names = own.tape, [], set()
        entered = [ir.val(f"input_{number}") for number in range(inputs)]
        outputs = body(*entered)
        self._tape, self._scopes, self._names, self._body = outer
        graph = ir.Graph(entered, outputs, nodes=[*own.constants.nodes, *own.tape.nodes], name=function)
        declared = [
            ir.Attr(key, ir.AttributeType.INT if isinstance(value, int) else ir.AttributeType.FLOAT, value)
            for key, value in attributes.items()
        ]
        return ir.Function(FUNCTIONS, function, graph=graph, attributes=declared)

    def weight(self, name: str) -> ir.Value:
        """A tensor of the checkpoint (or made from it), by name.

        Raises:
            GraphError: there is none of that name.
        """
        if name not in self._initializers:
            if name not in self._weights:
                raise GraphError(f"the graph asks for the weight {name}, which was not prepared")
            self._initializers[name] = self._main.initializer(self._weights[name], name=name)
        return self._initializers[name]

    def has_weight(self, name: str) -> bool:
        """Whether :meth:`weight` has a tensor of that name (biases are optional)."""
        return name in self._weights

    @property
    def product_type(self) -> ir.DataType:
        """Element type of matrix products: that of the weights that are not float32; float16 beside codes."""
        types = {tensor.dtype for tensor in self._weights.values()} - {ir.DataType.FLOAT}
        if not types <= HALVES:
            return ir.DataType.FLOAT16
        return types.pop() if types else ir.DataType.FLOAT

    def cast(self, x: ir.Value, to: ir.DataType) -> ir.Value:
        """``x`` as another element type: cast once, and not at all back to the type that it came from."""
        if element_type(x) == to:
            return x
        if (x, to) not in self._casts:
            y = typed(self.op("Cast", x, name=f"{_last(x)}_{to.name.lower()}", to=to), to)
            self._casts[x, to] = y
            if to == ir.DataType.FLOAT:  # nothing was lost
                self._casts[y, element_type(x)] = x
        return self._casts[x, to]

    def tap(self, value: ir.Value, module: str) -> ir.Value:
        """Note in the model which value is a module's result, so that a comparison finds it; returns the value.

        Args:
            value: float32, of the main graph.
            module: its path, e.g. ``layers.3.attn.Wo``.
        """
        self._taps[module] = value
        return value

    def widen(self, x: ir.Value) -> ir.Value:
        """``x`` as float32."""
        return self.cast(x, ir.DataType.FLOAT)

    def ints(self, *values: int) -> ir.Value:
        """An int64 vector, shape [len(values)]; equal ones are shared."""
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """A small tensor stored in the graph itself, shared by name."""
        if self._body is not None:
            return self._body.constant(name, array)
        if name not in self._initializers:
            self._initializers[name] = self._main.initializer(ir.tensor(array, name=name), name=name)
        return self._initializers[name]

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
        """Declare a graph input; text dimensions are dynamic axes."""
        value = ir.val(name, dtype=dtype, shape=list(shape))
        self._inputs.append(value)
        return value

    def output(self, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[Dim]) -> None:
        """Declare ``value`` a graph output called ``name``."""
        value.name = name
        value.dtype = dtype
        value.shape = ir.Shape(list(shape))
        self._outputs.append(value)

    def build(self, graph_name: str, producer_version: str, opset: int) -> ir.Model:
        """The finished model.

        Args:
            graph_name: written into it.
            producer_version: written into it.
            opset: the version of the standard operators.

        Raises:
            GraphError: a prepared weight is not used, so part of the model is missing.
        """
        unused = sorted(set(self._weights) - set(self._initializers))
        if unused:
            raise GraphError(f"weights that no node uses: {', '.join(unused[:5])} ({len(unused)} in all)")
        idle = self._casts_for_taps_alone()
        opsets = {domain: opset if domain == "" else 1 for domain in sorted({"", *self._domains})}
        for function in self._functions.values():
            function.graph.opset_imports.update(opsets)
        graph = ir.Graph(
            self._inputs,
            self._outputs,
            nodes=[node for node in self._main.nodes if node not in idle],
            initializers=self._main.initializers,
            opset_imports=opsets,
            name=graph_name,
        )
        model = ir.Model(
            graph,
            ir_version=IR_VERSION,
            producer_name="mbexport",
            producer_version=producer_version,
            functions=list(self._functions.values()),
        )
        if self._taps:
            model.metadata_props[TAPS] = json.dumps({module: value.name for module, value in self._taps.items()})
        return model

    def _casts_for_taps_alone(self) -> set[ir.Node]:
        """Casts to float32 that nothing reads: what they were made of is tapped in their place, and they can go."""
        idle = set()
        for module, value in self._taps.items():
            cast = value.producer()
            if cast is not None and cast.op_type == "Cast" and not value.uses() and value not in self._outputs:
                source = cast.inputs[0]
                if source is not None:
                    self._taps[module] = source
                    cast.replace_input_with(0, None)
                    idle.add(cast)
        return idle


class _Body:
    """Of a function: its nodes, and its constants, which are nodes, as functions have no initializers."""

    def __init__(self) -> None:
        self.tape, self.constants = Tape(), Tape()
        self._by_name: dict[str, ir.Value] = {}

    def constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        """See :meth:`GraphBuilder.constant`."""
        if name not in self._by_name:
            value = self.constants.op("Constant", [], {"value": ir.tensor(array, name=name)}, name=name)
            value.name = name
            self._by_name[name] = value
        return self._by_name[name]


def element_type(value: ir.Value) -> ir.DataType:
    """Of a floating-point value: float32 unless another was noted on it."""
    return value.dtype or ir.DataType.FLOAT


def typed(value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """``value``, its element type noted on it; float32 goes without saying."""
    if dtype != ir.DataType.FLOAT:
        value.dtype = dtype
    return value


def _last(value: ir.Value) -> str:
    """The last part of a value's name."""
    return (value.name or "").rsplit("/", 1)[-1]
