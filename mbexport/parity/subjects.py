"""What can be validated: a bundle, a single ONNX file, a directory that somebody else's exporter wrote."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from mbexport import manifest as manifests
from mbexport.checkpoint.spec import ModelSpec
from mbexport.disk.external import check_external_data
from mbexport.errors import BundleError, InputError
from mbexport.manifest import Graph, Manifest
from mbexport.parity.described import is_bundle
from mbexport.parity.samples import answer_outputs
from mbexport.runtime.graphs import NOT_ON_CPU

INPUTS = ("input_ids", "attention_mask")
# Element types that weights are stored in, as precisions name them; the others are float32's.
PRECISION_OF = {
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.FLOAT8E4M3FN: "fp8",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "int8",
    ir.DataType.INT4: "int4",
    ir.DataType.UINT4: "int4",
}
CODES = ("int8", "int4", "fp8")  # of quantized weights
ENOUGH = 0.1  # of all numbers in matrices, from which on their type is the graph's


@dataclass(frozen=True)
class SubjectGraph:
    """A graph to compare: ``file``, as reports name it, and ``path``, where it lies.

    ``outputs``: that answers are made of, None for all; ``entry``: of the bundle's manifest, None for somebody
    else's graph.
    """

    file: str
    path: Path
    precision: str
    outputs: tuple[str, ...] | None
    entry: Graph | None = None

    @property
    def is_foreign(self) -> bool:
        """Whether somebody else made it."""
        return self.entry is None

    @property
    def is_packed(self) -> bool:
        """Whether its rows hold several texts."""
        return self.entry is not None and self.entry.packed

    @property
    def is_quantized(self) -> bool:
        """Whether its weights are codes, so that no bound holds its error."""
        return self.precision in CODES


@dataclass(frozen=True)
class Subject:
    """What is validated: its graphs, and those that cannot be compared, each with the reason.

    ``manifest``: of a bundle, None where it is none.
    """

    path: Path
    graphs: tuple[SubjectGraph, ...]
    skipped: dict[str, str]
    manifest: Manifest | None


def open_subject(path: Path, spec: ModelSpec, *, bisect: bool) -> Subject:
    """Find the graphs of a bundle, a directory, or a single file.

    Args:
        path: any of them.
        spec: the model that they should compute; decides which outputs are compared.
        bisect: whether quantized graphs are compared, too.

    Raises:
        InputError: there is no graph that can be compared; says why.
        BundleError: the path is nothing of the kind, or a bundle is damaged.
    """
    if is_bundle(path):
        return _open_bundle(path, bisect=bisect)
    if path.is_file():
        return _open_foreign(path, {path.name: path}, spec, bisect=bisect)
    found = (*sorted(path.glob("*.onnx")), *sorted(path.glob("*/*.onnx")))
    files = {file.relative_to(path).as_posix(): file for file in found}
    if not files:
        what = "holds no mbexport.json and no .onnx file" if path.is_dir() else "does not exist"
        raise BundleError(f"{path} {what}: expected a bundle, an ONNX file, or a directory with some")
    return _open_foreign(path, files, spec, bisect=bisect)


def most_exact(subject: Subject) -> SubjectGraph:
    """The graph that others are best compared with: FP32, portable; in half precision where there is no other.

    Raises:
        InputError: all are quantized.
    """

    def exactness(graph: SubjectGraph) -> tuple[bool, ...]:
        entry = graph.entry
        plain = entry is None or not (entry.packed or entry.selects_tokens)
        return graph.precision == "fp32", plain, entry is None or entry.dialect == "portable"

    graphs = [graph for graph in subject.graphs if not graph.is_quantized and not graph.is_packed]
    if not graphs:
        raise InputError(f"{subject.path} holds no FP32 or FP16 graph to compare with; it has quantized ones only")
    return max(graphs, key=exactness)


def _open_bundle(path: Path, *, bisect: bool) -> Subject:
    manifest = manifests.read(path)
    manifests.check_files(path, manifest)
    for graph in manifest.graphs:
        check_external_data(path / graph.file, BundleError)
    reasons = {graph.file: _skip_reason(graph, bisect=bisect) for graph in manifest.graphs}
    graphs = tuple(
        SubjectGraph(graph.file, path / graph.file, graph.precision, manifest.answer_outputs, graph)
        for graph in manifest.graphs
        if reasons[graph.file] is None
    )
    return Subject(path, graphs, {file: reason for file, reason in reasons.items() if reason is not None}, manifest)


def _skip_reason(graph: Graph, *, bisect: bool) -> str | None:
    """Why a graph of a bundle is not compared; None if it is."""
    if graph.precision in NOT_ON_CPU and (bisect or not graph.needs_gate):
        return f"ONNX Runtime computes no {graph.precision} on a CPU"
    if graph.needs_gate and not bisect:
        return (
            f"{graph.precision} is held to limits of its own by mbexport int8, "
            "whose figures are among the manifest's checks; --bisect looks for what is broken in it"
        )
    return None


def _open_foreign(path: Path, files: dict[str, Path], spec: ModelSpec, *, bisect: bool) -> Subject:
    graphs, skipped = [], {}
    for name, file in files.items():
        found = _read_foreign(name, file, spec)
        if isinstance(found, str):
            skipped[name] = found
        elif found.precision in NOT_ON_CPU:
            skipped[name] = f"ONNX Runtime computes no {found.precision} on a CPU"
        elif found.is_quantized and not bisect:
            skipped[name] = (
                f"its weights are {found.precision} codes: what that costs is told by labelled texts, "
                "not by limits for rounding; --bisect compares it all the same"
            )
        else:
            graphs.append(found)
    if not graphs:
        name, reason = next(iter(skipped.items()))
        others = f" (and so for {len(skipped) - 1} more)" if len(skipped) > 1 else ""
        raise InputError(f"{path if path.is_file() else path / name} cannot be compared: {reason}{others}")
    return Subject(path, tuple(graphs), skipped, None)


def _read_foreign(name: str, file: Path, spec: ModelSpec) -> SubjectGraph | str:
    """The graph of a file, or why it cannot be compared."""
    if not file.is_file():
        return "it is no file"
    check_external_data(file, InputError)
    logging.getLogger(ir.__name__).setLevel(logging.ERROR)  # it warns of names in a stranger's graph, as they are
    try:
        model = ir.load(file)  # weights beside it are not read
    except Exception as cause:
        raise InputError(f"{file} is no readable ONNX file: {' '.join(str(cause).split()):.200}") from cause
    fault = _input_fault(model.graph)
    if fault is not None:
        return fault
    outputs = _answer_outputs(model.graph, spec)
    return outputs if isinstance(outputs, str) else SubjectGraph(name, file, _precision(model.graph), outputs)


def _input_fault(graph: ir.Graph) -> str | None:
    """Why a graph does not take the inputs of a ModernBERT, in words; None if it does."""
    given = {value.name or "": value for value in graph.inputs if value.name not in graph.initializers}
    if set(given) != set(INPUTS):
        return f"its inputs are {', '.join(given) or 'none'}, expected {' and '.join(INPUTS)}"
    for name, value in given.items():
        if value.dtype != ir.DataType.INT64:
            return f"its input {name} is of type {value.dtype.name if value.dtype else 'unknown'}, expected INT64"
        if value.shape is None:
            continue
        sizes = [str(size) if isinstance(size, int) else "any" for size in value.shape]
        if len(sizes) != 2:
            return f"its input {name} has {len(sizes)} axes, expected batch and sequence"
        if sizes != ["any", "any"]:
            return f"its input {name} is fixed to {' x '.join(sizes)}; export it with dynamic batch and sequence axes"
    return None


def _answer_outputs(graph: ir.Graph, spec: ModelSpec) -> tuple[str, ...] | str:
    """The names of a graph's outputs that are compared, or why they do not fit the model."""
    names = [value.name or "" for value in graph.outputs]
    candidates, axes, width = _expected_outputs(spec)
    wanted = next((candidate for candidate in candidates if set(candidate) <= set(names)), None)
    if wanted is None and len(names) == len(candidates[0]):
        wanted = tuple(names)  # a model of torch.onnx.export may call them as it likes
    expected = " or ".join(" and ".join(candidate) for candidate in candidates)
    if wanted is None:
        return f"its outputs are {', '.join(names)}, expected {expected} for {spec.task}"
    for value in graph.outputs:
        if value.name not in wanted or value.shape is None:
            continue
        sizes = list(value.shape)
        if len(sizes) != axes:
            return f"its output {value.name} has {len(sizes)} axes, expected {axes} for {spec.task}"
        if width is not None and isinstance(sizes[-1], int) and sizes[-1] != width:
            return f"its output {value.name} gives {sizes[-1]} numbers, the model has {width}"
    return wanted


def _expected_outputs(spec: ModelSpec) -> tuple[tuple[tuple[str, ...], ...], int, int | None]:
    """Names of the outputs, by preference, how many axes each has, and the size of the last (None: the tokens')."""
    names = answer_outputs(spec)
    if spec.task == "question-answering":
        return (names,), 2, None
    if spec.head is not None:
        return (names,), 3 if spec.head.pooling is None else 2, spec.head.outputs
    if spec.sentence is None:
        return (names, ("token_embeddings",)), 3, spec.hidden_size
    return (names,), 3 if spec.sentence.pooling is None else 2, spec.sentence.width(spec.hidden_size, *names)


def _precision(graph: ir.Graph) -> str:
    """The precision that a graph's matrices are stored in: codes before floating point, since biases stay that."""
    sizes: dict[str, int] = {}
    for tensor in _tensors(graph):
        if len(tensor.shape) >= 2 and (tensor.dtype.is_floating_point() or tensor.dtype in PRECISION_OF):
            precision = PRECISION_OF.get(tensor.dtype, "fp32")
            sizes[precision] = sizes.get(precision, 0) + tensor.size
    least = ENOUGH * sum(sizes.values())
    return next((name for name in (*CODES, "bf16", "fp16") if sizes.get(name, 0) > least), "fp32")


def _tensors(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    """Initializers, and constants, which some exporters put weights into."""
    yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
    for node in graph:
        if node.op_type == "Constant" and "value" in node.attributes:
            yield node.attributes["value"].as_tensor()
