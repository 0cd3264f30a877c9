"""What a GPU makes of mbexport's graphs and engines, beside PyTorch: speed, memory, exactness, kernels.

    python3 benchmarks/gpu/run.py                      # in an environment that has everything
    python3 benchmarks/gpu/run.py --wheels FOLDER      # on a machine with PyTorch alone: the rest from a folder
    python3 benchmarks/gpu/run.py --smoke              # all of it, small; on the CPU where there is no GPU

Goes on where it stopped. README.md beside this file says what it needs and what it does. Standard library only: this
runs before anything is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # in the place of this folder, whose modules are the package benchmarks.gpu

from benchmarks.gpu.wheels import WheelError, collect, install, join  # noqa: E402 (ROOT must be on the path)


def main() -> None:
    """Install what was brought, then measure in a process that sees it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--wheels", type=Path, action="append", default=[], help="a folder of wheels, or of parts of some"
    )
    parser.add_argument("--collect", action="store_true", help="keep what --wheels brings, and measure nothing yet")
    parser.add_argument("--work", type=Path, default=ROOT / "build/gpu", help="for all that is made on the way")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks/results/gpu", help="gets a folder named by the GPU"
    )
    parser.add_argument("--minutes", type=float, help="begin nothing new after so many; the next call goes on")
    parser.add_argument("--only", action="append", default=[], help="a contender (several: give it again)")
    parser.add_argument("--again", action="append", default=[], help="a contender to be measured anew")
    parser.add_argument("--list", action="store_true", help="name the contenders, and who cannot take part, and why")
    parser.add_argument("--smoke", action="store_true", help="small, and on the CPU where there is no GPU")
    options = parser.parse_args()
    site, store = options.work / "site", options.work / "wheels"
    try:
        for folder in options.wheels:
            collect(folder, store)
        missing = join(store)
        if options.collect:
            print(f"kept in {store}; of what was split there is still missing: {', '.join(missing) or 'nothing'}")
            return
        if missing:
            raise WheelError(f"still missing: {', '.join(missing)}; bring them, or take the others out of {store}")
        if store.exists():
            install(store, site)
    except WheelError as error:
        parser.error(str(error))
    paths = [str(site.resolve()), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    chosen = {name: getattr(options, name) for name in ("minutes", "only", "again", "list", "smoke")}
    chosen |= {"work": str(options.work.resolve()), "results": str(options.results.resolve())}
    command = [sys.executable, "-m", "benchmarks.gpu.measure", json.dumps(chosen)]
    libraries = [*_cuda_libraries(site), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "LD_LIBRARY_PATH": os.pathsep.join(libraries)}
    raise SystemExit(subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode)


def _cuda_libraries(site: Path) -> list[str]:
    """Folders of NVIDIA's wheels: ONNX Runtime looks for them beside itself only, and PyTorch has them elsewhere."""
    packages = dict.fromkeys([str(site.resolve()), *sys.path[1:]])
    return [str(folder) for package in packages for folder in sorted(Path(package).glob("nvidia/*/lib"))]


if __name__ == "__main__":
    main()
