"""Quantized graphs into a bundle: one file of weights for all of a kind, equal tensors stored once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256 as hash_of
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mbexport import manifest as manifests
from mbexport.bundle.graphs import external
from mbexport.bundle.weights import ALIGNMENT, Place, append
from mbexport.files import beside, put_in_place
from mbexport.manifest import Check, Graph, Manifest, WeightsFile
from mbexport.writing import HashedFile, sha256

Tensors = Mapping[str, npt.NDArray[Any]]
SMALL, SMALL_ALIGNMENT = 2**16, 64  # bytes: a page for each of many scales would be much of a small model


@dataclass(frozen=True)
class Written:
    """Weights in a file that has no place yet: where tensors lie, by graph and by name."""

    temporary: Path
    file: WeightsFile
    places: tuple[Mapping[str, Place], ...]

    def tensors(self, number: int, data_file: Path) -> dict[str, ir.ExternalTensor]:
        """Of the graph of that number, as tensors of ``data_file``, which this file is or will be."""
        return {name: external(name, place, data_file) for name, place in self.places[number].items()}


@contextmanager
def written(bundle: Path, data_file: str, graphs: Sequence[Tensors]) -> Iterator[Written]:
    """Write the tensors of some graphs to a file beside ``data_file``; gone when the block ends, unless placed.

    Args:
        bundle: the bundle.
        data_file: relative to it.
        graphs: the tensors of each by name; what is equal is stored once.

    Raises:
        OSError: the file cannot be written.
    """
    with beside(bundle / data_file) as temporary:
        known: dict[tuple[bytes, str, tuple[int, ...]], Place] = {}
        places: list[dict[str, Place]] = []
        with HashedFile(temporary) as file:
            for tensors in graphs:
                places.append({})
                for name, array in tensors.items():
                    content = np.ascontiguousarray(array).reshape(array.shape)  # which makes scalars vectors
                    key = (hash_of(content.reshape(-1).view(np.uint8).data).digest(), str(array.dtype), array.shape)
                    if key not in known:
                        known[key] = append(file, content, ALIGNMENT if content.nbytes > SMALL else SMALL_ALIGNMENT)
                    places[-1][name] = known[key]
            entry = WeightsFile(data_file, file.bytes, file.sha256())
        yield Written(temporary, entry, tuple(places))


@dataclass(frozen=True)
class Placed:
    """A graph to put into a bundle: its manifest entry but for the hash, the model, and its check, if it has one."""

    entry: Graph
    model: ir.Model
    check: Check | None


def place(bundle: Path, weights: Written, graphs: Sequence[Placed]) -> tuple[Graph, ...]:
    """Put weights and graphs in their places, and into the manifest, in one step for readers of the manifest.

    Args:
        bundle: the bundle.
        weights: of all the graphs.
        graphs: their models name ``weights.file`` as the file of their tensors.

    Returns:
        The manifest's entries.

    Raises:
        OSError: a file cannot be written.
    """
    with ExitStack() as stack:
        new = [(item, stack.enter_context(beside(bundle / item.entry.file))) for item in graphs]
        for item, temporary in new:
            ir.save(item.model, temporary)
        entries = [dataclasses.replace(item.entry, sha256=sha256(temporary)) for item, temporary in new]

        def without(current: Manifest) -> Manifest:
            for entry in entries:
                current = current.without_graph(entry.file)
            return current

        def placing(current: Manifest) -> Manifest:
            put_in_place(weights.temporary, bundle / weights.file.file)
            for item, temporary in new:
                put_in_place(temporary, bundle / item.entry.file)
            for entry, item in zip(entries, graphs, strict=True):
                current = current.with_graph(entry)
                current = current if item.check is None else current.with_check(item.check)
            return current.with_weights(weights.file)  # last: a graph's entry takes the place of its weights', too

        # First without the graphs: readers that come while their files change find no entry of them.
        manifests.update(bundle, without)
        manifests.update(bundle, placing)
    return tuple(entries)
