"""Wheels that are too large to be carried at once: split where they are, joined and installed where they are needed.

    python benchmarks/gpu/wheels.py split WHEELS TRIPS --megabytes 45

writes TRIPS/1, TRIPS/2, ..., none of them larger; ``run.py --wheels TRIPS/1`` takes each in turn, keeps what it holds,
and begins when all is there. Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

# NAME.whl.2-of-5.0123456789abcdef: the number from 1, and the start of the whole wheel's SHA-256.
PART = re.compile(r"(?P<wheel>.+\.whl)\.(?P<number>\d+)-of-(?P<count>\d+)\.(?P<digest>[0-9a-f]{16})")
PIP = ("--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--quiet", "--disable-pip-version-check")


# Python imports it at its start, and so reads the folder's .pth files, which a folder on PYTHONPATH alone has not done.
CUSTOMIZE = "import pathlib, site\nsite.addsitedir(str(pathlib.Path(__file__).parent))\n"


class WheelError(Exception):
    """Wheels or parts are missing, damaged or not installable; the message says which, and what to do."""


def split(folder: Path, into: Path, size: int) -> list[Path]:
    """Copy wheels into folders of at most ``size`` bytes, in parts where they must be.

    Args:
        folder: the wheels.
        into: gets the folders 1, 2, ...; must not be there yet.
        size: bytes of each folder.

    Returns:
        The folders, in order.

    Raises:
        WheelError: no wheels there, or ``into`` is.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise WheelError(f"{folder} holds no wheels (*.whl)")
    if into.exists():
        raise WheelError(f"{into} is there already; name another folder, or remove it")
    trips: list[Path] = []
    room = 0
    for wheel in wheels:
        content = wheel.read_bytes()
        digest = hashlib.sha256(content).hexdigest()[:16]
        cuts = [0, *range(room or size, len(content), size), len(content)]  # the first piece fills what room there is
        for number, (start, end) in enumerate(pairwise(cuts), start=1):
            if not room:
                trips.append(into / str(len(trips) + 1))
                trips[-1].mkdir(parents=True)
                room = size
            count = len(cuts) - 1
            name = wheel.name if count == 1 else f"{wheel.name}.{number}-of-{count}.{digest}"
            (trips[-1] / name).write_bytes(content[start:end])
            room -= end - start
    return trips


def collect(folder: Path, store: Path) -> None:
    """Copy the wheels and parts that a folder holds to where they are kept from one call to the next.

    Raises:
        WheelError: the folder holds neither.
    """
    found = [path for path in sorted(folder.glob("*")) if path.suffix == ".whl" or PART.fullmatch(path.name)]
    if not found:
        raise WheelError(f"{folder} holds no wheels (*.whl), and no parts of any")
    store.mkdir(parents=True, exist_ok=True)
    for path in found:
        shutil.copyfile(path, store / path.name)


def join(store: Path) -> list[str]:
    """Join the wheels whose parts are all there; the names of the parts that others still miss.

    Raises:
        WheelError: what was joined is not the wheel that was split.
    """
    missing: list[str] = []
    matches = (PART.fullmatch(path.name) for path in store.glob("*.whl.*"))
    for wheel, count, digest in sorted({(m["wheel"], int(m["count"]), m["digest"]) for m in matches if m}):
        parts = [store / f"{wheel}.{number}-of-{count}.{digest}" for number in range(1, count + 1)]
        absent = [part.name for part in parts if not part.exists()]
        missing += absent
        if not absent:
            _join(parts, store / wheel, digest)
    return missing


def _join(parts: list[Path], wheel: Path, digest: str) -> None:
    content = b"".join(part.read_bytes() for part in parts)
    found = hashlib.sha256(content).hexdigest()[:16]
    if found == digest:
        joined = wheel.with_suffix(".joined")
        joined.write_bytes(content)
        joined.replace(wheel)
    for part in parts:
        part.unlink()
    if found != digest:
        raise WheelError(f"the parts of {wheel.name} make SHA-256 {found}..., expected {digest}...; bring them again")


def install(store: Path, site: Path) -> None:
    """Install all wheels of a folder into another, which then goes on ``PYTHONPATH``; nothing where that was done.

    Dependencies are not asked for: what a machine has of them is better known to whoever brought the wheels.

    Raises:
        WheelError: pip fails; with its last words.
    """
    wheels = sorted(store.glob("*.whl"))
    marker, wanted = site / ".wheels", "\n".join(wheel.name for wheel in wheels)
    if marker.exists() and marker.read_text() == wanted:
        return
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", *PIP, "--target", str(site), *map(str, wheels)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise WheelError(f"pip cannot install {', '.join(w.name for w in wheels)}: {result.stderr.strip()[-500:]}")
    (site / "sitecustomize.py").write_text(CUSTOMIZE)
    marker.write_text(wanted)


def main() -> None:
    """Split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="split")
    command = commands.add_parser("split", help="copy wheels into folders of a bounded size")
    command.add_argument("wheels", type=Path)
    command.add_argument("trips", type=Path)
    command.add_argument("--megabytes", type=int, default=45, help="of each folder, a million bytes each")
    options = parser.parse_args()
    try:
        for trip in split(options.wheels, options.trips, options.megabytes * 10**6):
            print(f"{trip}: {', '.join(path.name for path in sorted(trip.iterdir()))}")
    except WheelError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
