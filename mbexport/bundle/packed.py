"""The packed form of a bundle's graph: rows of several texts, the same weights. For GPUs."""

from __future__ import annotations

from pathlib import Path

from mbexport import manifest as manifests
from mbexport.bundle.graphs import check_packable, write_packed_graph
from mbexport.bundle.stored import external_tensors
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.disk.writing import cannot_write
from mbexport.errors import BundleError
from mbexport.manifest import Graph, Manifest


def ensure_packed_graph(bundle: Path, graph: Graph) -> Graph:
    """The packed form of one of the bundle's graphs, written now if it is not there.

    Args:
        bundle: the bundle.
        graph: a graph of it that ``build_graph`` can pack; it stays as it is.

    Raises:
        BundleError: the bundle is damaged or cannot be written to.
        InputError: the model has no packed form.
    """
    manifest = manifests.read(bundle)
    known = next((other for other in manifest.graphs if other.packed_of == graph.file), None)
    if known is not None and (bundle / known.file).is_file():
        return known
    spec = read_bundle_spec(bundle, manifest)
    check_packable(spec)
    try:
        packed = write_packed_graph(spec, external_tensors(bundle / graph.file), bundle, graph)

        def placing(current: Manifest) -> Manifest:
            if graph not in current.graphs:
                raise BundleError(f"{bundle / graph.file} was replaced while it was packed; run this again")
            return current.with_graph(packed)

        manifests.update(bundle, placing)
    except OSError as cause:
        raise cannot_write(bundle, cause) from cause
    return packed
