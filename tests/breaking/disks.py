"""Commands on a disk that is full, and on one that is read-only, in a mount namespace of its own.

    unshare --map-root-user --mount python -m tests.breaking.disks PLACE

PLACE is an empty folder, which a small disk in memory is mounted on. Prints a summary as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from mbexport.bundle import write
from tests.breaking.children import Command, import_all
from tests.breaking.kills import SCENARIOS, Killer, Summary

SIZE = "400m"
LEFT = (0, 2**14, 2**18, 2**20, 2**21, 2**22)  # bytes; the weights have 2 MB
ON_READ_ONLY = {"int8", "trt", "prepack", "replace", "validate", "predict", "inspect"}


def read_only(
    killer: Killer, place: Path, said: Path, scenarios: Collection[str]
) -> dict[str, tuple[int | None, list[str]]]:
    """Of commands on bundles that nobody can write to: the exit code, and the lines that they say."""
    names = [name for name in scenarios if name in ON_READ_ONLY]
    folders = {name: killer.prepared(name).folder for name in names}
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    results = {}
    for name in names:
        words = [tempfile.gettempdir() if word == "report" else word for word in SCENARIOS[name].words]
        code = Command(words, folders[name], said).wait()
        results[name] = (code, said.read_text(errors="replace").splitlines())
    return results


def main() -> None:
    """Fill the disk, then make it read-only."""
    place, said = Path(sys.argv[1]), Path(tempfile.mkdtemp()) / "said.txt"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)], check=True)
    import_all()
    write.SPARE_BYTES = -(2**40)  # no look at the room there is: another program may take it afterwards
    killer, summary = Killer(place, said), Summary()
    scenarios = sys.argv[2:] or list(SCENARIOS)
    for name in scenarios:
        for left in LEFT:
            killer.on_full_disk(name, left, summary)
    figures = {"runs": summary.runs, "refused": dict(summary.stopped), "faults": summary.faults}
    print(json.dumps(figures | {"read-only": read_only(killer, place, said, scenarios)}))


if __name__ == "__main__":
    main()
