"""Builds the kernels with the package: a shared library beside this file, from the C sources beside it.

On x86-64 Linux, by the compiler that ``CC`` names, else ``cc``. Where there is none, or on another system, the
package is built without: its graphs are computed by ONNX Runtime's own operators then, and ``mbexport inspect`` says
so. ``MBEXPORT_BUILD_KERNELS=off`` leaves them out, ``MBEXPORT_BUILD_KERNELS=on`` makes a failure an error.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "kernels.so"
COMMON = ("-std=c11", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")
# Each instruction set is an object of its own; which one runs is chosen on the machine that runs it.
OBJECTS = {
    "operators": ("operators.c", ("-O2",)),
    "avx2": ("kernels.c", ("-O3", "-mavx2", "-mfma")),
    "avx512": ("kernels.c", ("-O3", "-mavx512f", "-mfma")),
}


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg, misc, unused-ignore]
    """Adds the library to a wheel, and to the source tree of an editable installation."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (hatchling gives it)
        """Called by hatchling before a wheel is built."""
        wanted = os.environ.get("MBEXPORT_BUILD_KERNELS", "auto")
        LIBRARY.unlink(missing_ok=True)
        if wanted == "off":
            return
        try:
            build()
        except (OSError, subprocess.CalledProcessError) as cause:
            if wanted == "on":
                raise
            self.app.display_warning(f"mbexport is built without its kernels for CPUs: {cause}")
            return
        build_data["artifacts"].append(LIBRARY.relative_to(self.root).as_posix())
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"  # no part of it depends on the version of Python


def build() -> None:
    """Compile :data:`LIBRARY`.

    Raises:
        OSError: this system is not x86-64 Linux, or has no compiler.
        subprocess.CalledProcessError: the compiler failed; it has said why.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise OSError(f"they are for x86-64 Linux, and this is {sys.platform} on {platform.machine()}")
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        raise OSError(f"there is no C compiler {compiler[0]!r}; install one, or name one in CC")
    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory)
        for name, (source, options) in OBJECTS.items():
            command = [*compiler, *COMMON, *options, "-c", str(FOLDER / source), "-o", str(made / f"{name}.o")]
            subprocess.run(command, check=True)
        library = LIBRARY.with_suffix(f".{os.getpid()}")  # beside it, so that it can take its place in one step
        objects = [str(made / f"{name}.o") for name in OBJECTS]
        subprocess.run([*compiler, "-shared", "-s", "-o", str(library), *objects, "-lm"], check=True)
        library.replace(LIBRARY)
