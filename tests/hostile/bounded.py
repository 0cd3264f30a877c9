"""Commands in one process of their own, with little memory and little time: a list of them in, what each did out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
MEMORY = 4 * 2**30  # bytes of addresses, a fourth of which the imported libraries take
FILE = 2**28  # bytes of a file that is written
SECONDS = 30  # of a command; each takes less than one where nothing is wrong


@dataclass(frozen=True)
class Outcome:
    """Exit code, what was printed, and what was said on standard error; code -1: it was stopped."""

    code: int
    stdout: str
    stderr: str

    def assert_refused(self, *messages: str) -> None:
        """Bad input, told in one line that a terminal can show."""
        assert self.code == 2, (self.code, self.stderr[-2000:])
        lines = [line for line in self.stderr.split("\n") if line]
        assert len(lines) == 1, lines
        assert lines[0].startswith("mbexport: error: ")
        assert lines[0].isprintable()
        assert len(lines[0]) < 5000
        for message in messages:
            assert message in lines[0]


def run_bounded(commands: Sequence[Sequence[str | Path]]) -> list[Outcome]:
    """Run commands one after the other; each ends in time, or the last outcomes are missing."""
    request = json.dumps([[str(word) for word in command] for command in commands])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.hostile.bounded"],
        input=request, capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip
    outcomes = [Outcome(**json.loads(line)) for line in result.stdout.splitlines()]
    assert len(outcomes) == len(commands), (commands[len(outcomes)], result.returncode, result.stderr[-2000:])
    return outcomes


class Late(BaseException):
    """The time of a command is over; no OSError, which commands expect."""


def main() -> None:
    """Run what standard input says; a JSON line for each."""
    import inspect
    import resource

    from click.testing import CliRunner

    from mbexport.cli import main as mbexport

    def late(*_: object) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    old = "mix_stderr" in inspect.signature(CliRunner).parameters
    apart: dict[str, bool] = {"mix_stderr": False} if old else {}  # click 8.1; later ones keep standard error apart
    for command in json.load(sys.stdin):
        signal.alarm(SECONDS)
        try:
            result = CliRunner(**apart).invoke(mbexport, command)
            outcome = {"code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}
        except Late:
            outcome = {"code": -1, "stdout": "", "stderr": traceback.format_exc()}
        finally:
            signal.alarm(0)
        print(json.dumps(outcome), flush=True)


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Spoils a folder: in its file of that name, the first ``old`` becomes ``new``."""

    def spoil(folder: Path) -> None:
        path = folder / name
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new, 1))

    return spoil


if __name__ == "__main__":
    main()
