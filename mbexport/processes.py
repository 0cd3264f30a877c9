"""Child processes: the memory that one took, and what it said last. Standard library only."""

from __future__ import annotations

import sys

# As -m does, but without the current directory on the path, where any file may be called as a package is
# (-P leaves it out from Python 3.11 on), and with this very mbexport, wherever it was found.
_RUN = """
import sys
sys.path[:] = filter(None, sys.path)
import importlib.machinery, importlib.util, runpy
spec = importlib.machinery.PathFinder.find_spec("mbexport", [sys.argv.pop()])
sys.modules["mbexport"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
runpy.run_module(sys.argv.pop(), run_name="__main__", alter_sys=True)
"""


def module_command(module: str) -> list[str]:
    """The command that runs a module of mbexport's in a process of its own."""
    from pathlib import Path  # not in a worker, whose memory is measured

    return [sys.executable, "-c", _RUN, module, str(Path(__file__).resolve().parent.parent)]


def peak_bytes() -> int | None:
    """The most memory that this process had resident so far; None where the system does not say.

    Linux's ``ru_maxrss`` is not taken where better is at hand: it counts the parent's memory too,
    which the process was a copy of before it became this program.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 (pathlib is not imported yet)
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def one_line(error: BaseException, longest: int) -> str:
    """An error for another process to read: in one line, of so many characters at most, with its type."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:longest]


def last_words(code: int, said: str) -> str:
    """One line about a process that ended before it answered.

    Args:
        code: its exit code, negative for a signal.
        said: all that it wrote to standard error.
    """
    last = next((line.strip() for line in reversed(said.split("\n")) if line.strip()), "it said nothing")
    cause = " (killed, as systems do when memory ends)" if code == -9 else ""
    return f"its process ended with code {code}{cause}: {last[:300]}"
