"""Which of a graph's products an engine really computes in 8 bits, read from the engine itself.

An engine of TensorRT-RTX holds its programs as text, one or several for each profile: a line that
declares each tensor, with its type, and a line for each operation, with the ONNX nodes that it stands
for. It is documented nowhere, so an engine without such a text (TensorRT's own) says nothing, rather
than no.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

# Codes' types in a graph and in a program.
CODES = {ir.DataType.INT8: "int8", ir.DataType.FLOAT8E4M3FN: "fp8"}
_PROGRAM_TYPES = {"int8": "int8", "fp8_e4m3": "fp8"}

_PROGRAM = re.compile(rb"\nmain \{\n([^\0]*?)\n\}")
_TENSOR = re.compile(rb'^ *(?:sub_)?tensor=\{.* name="([^"]+)".* type=(\w+) \}$', re.MULTILINE)
_PRODUCT = re.compile(rb'^ *fully_connected=\{ name=.*? input=\{"([^"]+)" "([^"]+)".*? layers="([^"]*)"', re.MULTILINE)
_NODE = re.compile(rb"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True)
class Products:
    """Products with matrices of codes.

    Attributes:
        precision: of the codes, ``int8`` or ``fp8``.
        asked: how many the graph has; further products are FP16.
        unseen: names of those that are not there as such in the programs of every profile; None where the
            engine does not say.
    """

    precision: str
    asked: int
    unseen: tuple[str, ...] | None

    def __str__(self) -> str:
        if self.unseen is None:
            return f"the graph asks for {self.asked}; the engine does not say"
        return f"{self.asked - len(self.unseen)} of {self.asked}, as the engine's own program has them"


def code_products(model: ir.Model) -> dict[str, str]:
    """The products with matrices of codes of a graph: name of the node, and ``int8`` or ``fp8``."""
    found: dict[str, str] = {}
    for node in model.graph.all_nodes():
        if node.op_type == "MatMul" and (kind := _codes_of(node.inputs[1])):
            found[node.name or ""] = kind
    return found


def _codes_of(matrix: ir.Value | None) -> str | None:
    """The type of the codes that a matrix is made of; None where it is made of none."""
    maker = None if matrix is None else matrix.producer()
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    codes = maker.inputs[0]
    return CODES.get(codes.dtype) if codes is not None and codes.dtype is not None else None


def look(engine: Path, asked: dict[str, str], profiles: int) -> Products | None:
    """What becomes of a graph's products with codes in an engine; None where the graph has none.

    Args:
        engine: the file.
        asked: as :func:`code_products` gives them.
        profiles: how many the engine has; each computes all of them.
    """
    if not asked:
        return None
    precision = next(iter(asked.values()))
    seen: dict[str, list[str]] = {}
    for name, kind in _seen(engine):
        seen.setdefault(name, []).append(kind)
    if not seen:
        return Products(precision, len(asked), None)
    unseen = [name for name, kind in asked.items() if not _only(kind, seen.get(name, []), profiles)]
    return Products(precision, len(asked), tuple(unseen))


def _only(kind: str, seen: Sequence[str], times: int) -> bool:
    """Whether a product is in the programs as often as it has to be, each time in that type."""
    return len(seen) >= times and set(seen) == {kind}


def _seen(engine: Path) -> Iterator[tuple[str, str]]:
    """The products of all programs: name of the node, and type of both sides, else ``mixed``."""
    with engine.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for main in _PROGRAM.finditer(data):
            declared = data[data.rfind(b"\0", 0, main.start()) + 1 : main.start()]
            types = {name: kind.decode() for name, kind in _TENSOR.findall(declared)}
            yield from _products(main[1], types)


def _products(operations: bytes, types: dict[bytes, str]) -> Iterator[tuple[str, str]]:
    for left, right, nodes in _PRODUCT.findall(operations):
        kinds = {types.get(left, "unknown"), types.get(right, "unknown")}
        kind = kinds.pop() if len(kinds) == 1 else "mixed"
        for name in _NODE.findall(nodes):
            yield name.decode(), _PROGRAM_TYPES.get(kind, kind)


def products_warning(products: Products | None, file: str) -> str | None:
    """The products that are not seen in 8 bits though the graph asks for it, named; None where there are none."""
    if products is None or not products.unseen:
        return None
    names = ", ".join(products.unseen[:3]) + (", ..." if len(products.unseen) > 3 else "")
    return (
        f"{file}: {len(products.unseen)} of {products.asked} products are not seen to be computed in "
        f"{products.precision} ({names}); measure whether it is faster than fp16 at all"
    )
