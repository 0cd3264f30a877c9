"""Whether a bundle's files are those that its manifest names, to the last byte."""

from __future__ import annotations

from pathlib import Path

from mbexport.files import Progress, no_progress, sha256
from mbexport.manifest import Engine, Graph, Manifest, WeightsFile


def wrong_files(bundle: Path, manifest: Manifest, progress: Progress = no_progress) -> list[str]:
    """What is wrong with files that a manifest holds a SHA-256 of: graphs, their weights, engines.

    Args:
        bundle: the bundle.
        manifest: the bundle's.
        progress: called after each file.

    Returns:
        A sentence for each file that is missing, cannot be read or is another one than the manifest says.
    """
    named: list[Graph | WeightsFile | Engine] = [*manifest.graphs, *manifest.weights, *manifest.engines]
    faults = []
    for number, entry in enumerate(named, start=1):
        path = bundle / entry.file
        if not path.is_file():
            faults.append(f"{entry.file}: missing")
        else:
            try:
                found = sha256(path)
            except OSError as cause:
                faults.append(f"{entry.file}: cannot be read: {cause.strerror}")
            else:
                if found != entry.sha256:
                    faults.append(f"{entry.file}: its SHA-256 is {found}, the manifest says {entry.sha256}")
        progress(number, len(named), entry.file)
    return faults


def verdict(bundle: Path, faults: list[str]) -> str:
    """What :func:`wrong_files` found, in words."""
    if not faults:
        return f"{bundle}: all files are as the manifest says"
    return "\n".join([*faults, f"{bundle} is not what was exported: copy the whole bundle again, or export again"])
