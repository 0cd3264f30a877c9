"""Where an ONNX file says that its tensors lie, told before anything opens it. Standard library only.

ONNX Runtime before 1.24 reads whatever file a graph names, also ``/etc/passwd``; onnx_ir waits for pipes; and no
parser of TensorRT's promises anything. So graphs are looked through here first: of a model's messages only those that
hold the word ``location`` are entered, which takes about a millisecond.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mbexport.disk.links import outside
from mbexport.errors import MbexportError
from mbexport.files import is_plain_name

KEY = b"location"  # of a TensorProto's external_data
SMALL = 2**24  # bytes of a file that are read at once
DEEPEST = 100  # messages within messages, as protobuf itself limits them
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # protobuf's wire types
# Fields of ONNX's messages, by number, through which a tensor is reached (onnx.proto3).
FIELDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}


def check_external_data(graph: Path, error: type[MbexportError]) -> None:
    """Refuse a graph whose tensors lie elsewhere than in regular files of its own folder, or of folders in it.

    Links are followed, but not out of the folder, except into the cache of Hugging Face's hub.

    Args:
        graph: the ONNX file.
        error: what is raised.

    Raises:
        error: names the place; or the file cannot be read, or is no ONNX file.
    """
    try:
        names = locations(graph)
    except (OSError, ValueError, IndexError) as cause:
        raise error(f"{graph} cannot be read as an ONNX graph: {cause}") from cause
    for name in sorted(names):
        parts = PurePosixPath(name).parts
        if not parts or "*" in name or not all(map(is_plain_name, parts)):  # OpenVINO's own places begin with *
            raise error(f"{graph}: tensors are said to lie in {name!r:.80}, expected a file beside the graph")
        file = graph.parent / name
        if not file.exists():
            continue  # what loads the graph says so
        if not file.is_file():
            raise error(f"{graph}: tensors are said to lie in {name!r:.80}, which is no file")
        elsewhere = outside(file, graph.parent)
        if elsewhere is not None:
            raise error(
                f"{graph}: tensors are said to lie in {name!r:.80}, which is a link to {elsewhere}; put the file there"
            )


def locations(graph: Path) -> set[str]:
    """All places of tensors that an ONNX file names.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no protobuf message.
        IndexError: it ends within one.
    """
    with graph.open("rb") as stream:
        size = stream.seek(0, 2)
        if size <= SMALL:
            stream.seek(0)
            return _names(stream.read())
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _names(data)


def _names(data: bytes | mmap.mmap) -> set[str]:
    places = list(_occurrences(data))
    return set(_Reader(data, places).names("Model", 0, len(data), 0)) if places else set()


def _occurrences(data: bytes | mmap.mmap) -> Iterator[int]:
    place = data.find(KEY)
    while place >= 0:
        yield place
        place = data.find(KEY, place + 1)


class _Reader:
    """Walks through the messages around given places of a file."""

    def __init__(self, data: bytes | mmap.mmap, places: list[int]) -> None:
        self._data, self._places = data, places

    def names(self, message: str, start: int, end: int, depth: int) -> Iterator[str]:
        """The places of tensors that a message between two bytes names."""
        if depth > DEEPEST:
            raise ValueError(f"it is nested deeper than {DEEPEST} messages")
        if message == "Entry":
            yield from self._name(start, end)
            return
        inner = FIELDS[message]
        for number, first, last in self._fields(start, end):
            if number in inner and self._holds_key(first, last):
                yield from self.names(inner[number], first, last, depth + 1)

    def _holds_key(self, start: int, end: int) -> bool:
        place = bisect_left(self._places, start)
        return place < len(self._places) and self._places[place] < end

    def _name(self, start: int, end: int) -> Iterator[str]:
        """What a key and a value say, as protobuf reads them: of several of a kind the last one counts."""
        texts = {number: self._data[first:last] for number, first, last in self._fields(start, end)}
        if texts.get(1) == KEY:
            yield texts.get(2, b"").decode("utf-8", "surrogateescape")

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Number, first byte and end of each field that has a length."""
        data, place = self._data, start
        while place < end:
            key, place = (data[place], place + 1) if data[place] < 0x80 else self._varint(place)
            kind = key & 7
            if kind == VARINT:
                _, place = self._varint(place)
                continue
            if kind == LENGTH:
                size, place = (data[place], place + 1) if data[place] < 0x80 else self._varint(place)
                if place + size > end:
                    raise ValueError(f"a field at byte {place} is longer than its message")
                yield key >> 3, place, place + size
            elif kind in (EIGHT_BYTES, FOUR_BYTES):
                size = 8 if kind == EIGHT_BYTES else 4
            else:
                raise ValueError(f"byte {place} begins no field")
            place += size
        if place != end or end > len(data):
            raise ValueError(f"a message ends at byte {place}, expected {end}")

    def _varint(self, place: int) -> tuple[int, int]:
        """A number, seven bits a byte, and the place behind it."""
        data = self._data
        value = data[place]
        place += 1
        if value < 0x80:
            return value, place
        value &= 0x7F
        for shift in range(7, 70, 7):
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & (2**64 - 1), place
        raise ValueError(f"byte {place} belongs to a number of more than 64 bits")
