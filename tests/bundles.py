"""Bundles that tests edit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mbexport import manifest as manifests
from mbexport.files import sha256


def rehash(graph: Path) -> None:
    """Have the manifest of an edited graph's bundle, if it is in one, say what the graph now is."""
    bundle = graph.parent.parent
    if (bundle / manifests.FILE_NAME).is_file():
        file = graph.relative_to(bundle).as_posix()
        manifest = manifests.read(bundle)
        graphs = tuple(
            replace(entry, sha256=sha256(graph)) if entry.file == file else entry for entry in manifest.graphs
        )
        manifests.write(replace(manifest, graphs=graphs), bundle)
