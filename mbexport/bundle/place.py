"""Graphs and their weights into a bundle that is there: files in their places, entries in the manifest, together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from mbexport import manifest as manifests
from mbexport.bundle.graphs import external
from mbexport.bundle.weights import Place
from mbexport.disk.temporary import beside
from mbexport.files import put_in_place, sha256
from mbexport.manifest import Check, Graph, Manifest, WeightsFile


@dataclass(frozen=True)
class Written:
    """Weights in a file that has no place yet: where tensors lie, by graph and by name."""

    temporary: Path
    file: WeightsFile
    places: tuple[Mapping[str, Place], ...]

    def tensors(self, number: int, data_file: Path) -> dict[str, ir.ExternalTensor]:
        """Of the graph of that number, as tensors of ``data_file``, which this file is or will be."""
        return {name: external(name, place, data_file) for name, place in self.places[number].items()}


@dataclass(frozen=True)
class Placed:
    """A graph to put into a bundle: its manifest entry but for the hash, the model, and its check, if it has one."""

    entry: Graph
    model: ir.Model
    check: Check | None


def place(
    bundle: Path, weights: Written, graphs: Sequence[Placed], report: Callable[[Sequence[Graph]], None] | None = None
) -> tuple[Graph, ...]:
    """Put weights and graphs in their places, and into the manifest, in one step for readers of the manifest.

    Args:
        bundle: the bundle.
        weights: of all the graphs.
        graphs: their models name ``weights.file`` as the file of their tensors.
        report: writes what is to be said of them, given their entries; first, so that no graph is without.

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
        if report is not None:
            report(entries)

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
