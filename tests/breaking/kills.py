"""Commands killed at random moments, or at each change that they make to files; what is left must hold.

    python -m tests.breaking.kills --runs 500             # random moments, random signals
    python -m tests.breaking.kills --every-step replace   # SIGKILL at each change of files

After each: the bundle that was there before answers as before (or as the new one, where it was to be replaced), every
file is as the manifest says, the same command succeeds when it is run again, and nothing is left that the command
leaves behind otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mbexport import manifest as manifests
from mbexport.disk import writing
from mbexport.errors import MbexportError
from mbexport.packaging.run import REPORT
from mbexport.verifying import wrong_files
from tests.breaking.children import Command, import_all, in_child

TEXTS = ("The bank raised its rate.", "A goal in the last minute of the match decided it.", "")
SIGNALS = {signal.SIGKILL: 6, signal.SIGTERM: 2, signal.SIGINT: 2}
SHAPES = ("--profile", "1x1:1x16:2x66")
EXAMPLE = Path(__file__).parents[2] / "examples" / "news_topics" / "checkpoint"
SAME = 1e-5  # in logits; those of the old model and the new one differ by more than 1


@dataclass(frozen=True)
class Scenario:
    """A command, and what it finds.

    Attributes:
        words: its arguments, in a folder with checkpoints ``old`` and ``new``.
        before: commands that came before it.
        replaces: it puts another bundle in the place of the old one.
        weight: how often it is drawn.
    """

    words: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = (("onnx", "old", "-o", "bundle"),)
    replaces: bool = False
    weight: int = 4


INT8 = ("int8", "bundle", "--calibration", "texts.txt", "--max-length", "32", "--min-agreement", "0")
TRT = ("trt", "bundle", "--gpu", "rtx4090")
REPORTED = ("--checkpoint", "old", "--max-length", "66", "--report", "report")
PACKAGE = ("package", "bundle", "-o", "served", "--name")
OLD = Scenario(()).before
SCENARIOS = {
    "export": Scenario(("onnx", "old", "-o", "bundle"), (), weight=8),
    "export packed": Scenario(("onnx", "old", "-o", "far/away/bundle", "--packed"), (), weight=4),
    "replace": Scenario(("onnx", "new", "-o", "bundle", "--force"), (*OLD, INT8), replaces=True, weight=12),
    "int8": Scenario(INT8, weight=8),
    "int8 again": Scenario((*INT8, "--keep", "layers.0"), (*OLD, INT8), weight=8),
    "trt": Scenario((*TRT, *SHAPES), weight=2),
    "trt again": Scenario((*TRT, *SHAPES, "--keep-fp32", "layers.0"), (*OLD, (*TRT, *SHAPES)), weight=2),
    "trt packed": Scenario((*TRT, *SHAPES, "--packed"), (*OLD, (*TRT, *SHAPES)), weight=2),
    "validate": Scenario(("validate", "bundle", *REPORTED), weight=4),
    "prepack": Scenario(("prepack", "bundle"), weight=4),
    "package": Scenario((*PACKAGE, "other", "--force"), (*OLD, (*PACKAGE, "first")), weight=4),
    "bench": Scenario(("bench", "bundle", "--shapes", "1x8", "--rounds", "1", "--report", "bench.json"), weight=1),
    "predict": Scenario(("predict", "bundle", *TEXTS), weight=1),
    "inspect": Scenario(("inspect", "bundle", "--verify"), weight=1),
}


@dataclass
class Prepared:
    """A scenario whose folder stands, and what the command does when nothing stops it."""

    scenario: Scenario
    folder: Path
    code: int
    seconds: float
    files: frozenset[str]


@dataclass
class Summary:
    """What was tried and what was found."""

    runs: int = 0
    stopped: Counter[str] = field(default_factory=Counter)  # by scenario, before the command was done
    finished: int = 0
    faults: list[str] = field(default_factory=list)


class Killer:
    """Prepares scenarios in a folder, and stops their commands; ``said`` gets the words of the last one."""

    def __init__(self, place: Path, said: Path) -> None:
        self._place, self._said = place, said
        in_child(lambda: make_checkpoints(place))
        self.expected: dict[str, list[list[float]]] = {}  # logits of the old and the new model
        self._prepared: dict[str, Prepared] = {}
        for name in ("old", "new"):
            folder = self._fresh(None)
            self._must(folder, ("onnx", name, "-o", "bundle"))
            self.expected[name] = in_child(lambda folder=folder: logits(folder / "bundle", "fp32"))

    def prepared(self, name: str) -> Prepared:
        """The scenario, after its first, undisturbed run."""
        if name not in self._prepared:
            scenario, template = SCENARIOS[name], self._place / "templates" / name / "work"
            shutil.copytree(self._place / "seed", template)
            for words in scenario.before:
                self._must(template, words)
            folder = self._fresh(template)
            started = time.perf_counter()
            code = self._command(scenario.words, folder).wait()
            seconds = time.perf_counter() - started
            if code not in (0, 1):
                raise SystemExit(f"{name} ends with code {code}: {self.said()[-1]}")
            self._prepared[name] = Prepared(scenario, template, code, seconds, files(folder))
        return self._prepared[name]

    def random(self, name: str, number: signal.Signals, moment: float, summary: Summary) -> None:
        """Stop the command at ``moment``, from 0 to 1 of its time."""
        ready = self.prepared(name)
        folder = self._fresh(ready.folder)
        command = self._command(ready.scenario.words, folder)
        time.sleep(moment * ready.seconds)
        command.stop(number)
        code = command.wait()
        done = code in (0, 1) and number == signal.SIGKILL
        summary.finished += done
        summary.stopped[name] += not done
        what = f"{name}, {number.name} at {moment:.3f} of {ready.seconds:.2f} s, code {code}"
        self._judge(ready, folder, command, what, summary)

    def step(self, name: str, number: int, summary: Summary) -> bool:
        """Kill the command at a change of files; False once it makes no more of them."""
        ready = self.prepared(name)
        folder = self._fresh(ready.folder)
        command = self._command(ready.scenario.words, folder, number)
        killed = command.wait() == -signal.SIGKILL
        summary.finished += not killed
        summary.stopped[name] += killed
        self._judge(ready, folder, command, f"{name}, killed at change {number}", summary)
        return killed

    def on_full_disk(self, name: str, free: int, summary: Summary) -> None:
        """Run the command where so many bytes are left to write to."""
        ready = self.prepared(name)
        folder, ballast = self._fresh(ready.folder), self._place / "ballast"
        with ballast.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, max(1, shutil.disk_usage(self._place).free - free))
        command = self._command(ready.scenario.words, folder)
        code, said = command.wait(), self.said()
        ballast.unlink()
        what = f"{name} with {free} bytes left"
        summary.finished += code == ready.code
        summary.stopped[name] += code == 2
        if code not in (2, ready.code) or (code == 2 and not is_refusal(said)):
            summary.faults.append(f"{what}: it ends with code {code}: {said}")
        self._judge(ready, folder, command, what, summary)

    def _judge(self, ready: Prepared, folder: Path, command: Command, what: str, summary: Summary) -> None:
        summary.runs += 1
        faults = in_child(lambda: self._state(ready, folder))
        again = self._command(ready.scenario.words, folder)
        code = again.wait()
        if code != ready.code and not (code == 2 and "exists; choose another place" in self.said()[-1]):
            faults = [*faults, f"run again, it ends with code {code}: {self.said()[-1]}"]
        if not (command.ends_with_its_children() and again.ends_with_its_children()):
            faults = [*faults, "processes are left"]
        after = in_child(lambda: self._state(ready, folder))
        if files(folder) != ready.files:
            after = [*after, f"other files than usual: {sorted(files(folder) ^ ready.files)}"]
        summary.faults += [f"{what}: {fault}" for fault in [*faults, *(f"run again: {fault}" for fault in after)]]
        if not (faults or after):
            shutil.rmtree(folder.parent)

    def _state(self, ready: Prepared, folder: Path) -> list[str]:
        """What is wrong with the bundle that is there."""
        found = [path.parent for path in folder.rglob(manifests.FILE_NAME) if not hidden(path.relative_to(folder))]
        bundles = [path for path in found if (path / "onnx").is_dir()]  # others lie in Triton's repository
        if not bundles:
            return ["the bundle is gone"] if ready.scenario.before else []
        faults = [fault for bundle in bundles for fault in self._faults(bundle, replaced=ready.scenario.replaces)]
        if (folder / "served").exists():
            faults += repository_faults(folder / "served")
        return faults

    def _faults(self, bundle: Path, *, replaced: bool) -> list[str]:
        faults = []
        try:
            manifest = manifests.read(bundle)
            faults += wrong_files(bundle, manifest)
            known = [self.expected[name] for name in (("old", "new") if replaced else ("old",))]
            answers = np.array(logits(bundle, "fp32"))
            if not any(np.abs(answers - np.array(expected)).max() < SAME for expected in known):
                faults.append(f"{bundle.name} answers otherwise: {answers.tolist()}")
            if any(graph.precision == "int8" and graph.activation_bits for graph in manifest.graphs):
                logits(bundle, "int8")
            for report in bundle.glob("reports/*.json"):
                json.loads(report.read_text())
        except (MbexportError, Warning, ValueError) as error:
            faults.append(f"{type(error).__name__}: {error}")
        return faults

    def said(self) -> list[str]:
        """The lines of what the last command said."""
        return self._said.read_text(errors="replace").splitlines() or [""]

    def _command(self, words: Sequence[str], folder: Path, last_step: int = 0) -> Command:
        return Command(words, folder, self._said, last_step)

    def _fresh(self, template: Path | None) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._place, prefix="run-")) / "work"
        return Path(shutil.copytree(template or self._place / "seed", folder))

    def _must(self, folder: Path, words: Sequence[str]) -> None:
        code = self._command(words, folder).wait()
        if code not in (0, 1):
            raise SystemExit(f"mbexport {' '.join(words)} ends with code {code}: {self.said()[-1]}")


def make_checkpoints(place: Path) -> None:
    """The folder that commands run in: two checkpoints, and texts."""
    from tests.checkpoints import save_checkpoint

    for seed, name in enumerate(("old", "new")):
        folder = save_checkpoint(place / "seed" / name, seed=seed, vocab_size=5000)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(EXAMPLE / file, folder / file)
    texts = "\n".join(f"{TEXTS[n % 2]} {n}" for n in range(40))
    (place / "seed" / "texts.txt").write_text(texts)


def logits(bundle: Path, precision: str) -> list[list[float]]:
    """What a bundle answers; a warning is an error."""
    import warnings

    from mbexport.runtime import load

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*quality gate.*")
        return load(bundle, "cpu", precision, 1).logits(list(TEXTS)).tolist()


def repository_faults(folder: Path) -> list[str]:
    """What is wrong with Triton's repository that is there: its report counts all bytes but its own and a guide's."""
    report = folder / REPORT
    if not report.is_file():
        return [f"{folder.name} is no repository"]
    found = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    found -= report.stat().st_size + (folder / "README.md").stat().st_size
    stated = json.loads(report.read_text())["bytes"]
    return [] if found == stated else [f"{folder.name} has {found} bytes, its report says {stated}"]


def files(folder: Path) -> frozenset[str]:
    """All files there, by their paths."""
    return frozenset(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def is_refusal(said: Sequence[str]) -> bool:
    """Whether all that a command said is one line about a full disk."""
    return (
        len(said) == 1
        and said[0].startswith("mbexport: error: ")
        and re.search("No space left|MiB left", said[0]) is not None
    )


def hidden(path: Path) -> bool:
    """Whether it lies in a temporary folder."""
    return any(part.startswith(".") for part in path.parts)


def main() -> None:
    """Run, print a summary as JSON; exit code 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every-step", choices=SCENARIOS, action="append", default=[])
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--from", type=int, default=1, dest="first")
    parser.add_argument("--to", type=int, default=1000, dest="last")
    parser.add_argument("--without-exchange", action="store_true", help="as on file systems that have none")
    parser.add_argument("--only", choices=SCENARIOS, action="append", default=[])
    options = parser.parse_args()
    import_all()
    if options.without_exchange:
        writing.exchanged = lambda *_: False  # type: ignore[assignment]
    drawn, summary, started = random.Random(options.seed), Summary(), time.time()  # noqa: S311 (moments, not secrets)
    place = Path(tempfile.mkdtemp(prefix="mbexport-kills-"))
    killer = Killer(place, place / "said.txt")
    for name in options.every_step:
        for step in range(options.first, options.last, options.stride):
            if not killer.step(name, step, summary):
                break
    names = {name: s.weight for name, s in SCENARIOS.items() if name in (options.only or SCENARIOS)}
    for number in range(options.runs):
        (name,) = drawn.choices([*names], [*names.values()])
        (kind,) = drawn.choices([*SIGNALS], [*SIGNALS.values()])
        killer.random(name, kind, drawn.uniform(0, 1), summary)
        print(f"{number + 1} of {options.runs}: {name}, {len(summary.faults)} faults", file=sys.stderr)
    if not summary.faults:
        shutil.rmtree(place)
    figures = {"runs": summary.runs, "stopped": dict(summary.stopped), "finished": summary.finished}
    print(json.dumps(figures | {"seconds": round(time.time() - started), "faults": summary.faults}, indent=2))
    sys.exit(1 if summary.faults else 0)


if __name__ == "__main__":
    main()
