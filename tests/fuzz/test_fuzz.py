"""The search in short, with a fixed seed, and every input that once broke the promise."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mbexport.errors import InputError
from tests.fuzz.engine import scratch
from tests.fuzz.targets import Target, Workplace
from tests.fuzz.watch import Tally, Watch

HERE = Path(__file__).parent
FOUND = sorted(path for path in (HERE / "corpus").rglob("*") if path.is_file())
# Of each target, fewer where an input takes long; all of them together take some twenty seconds.
EXAMPLES = {
    "config": 200, "safetensors": 200, "index": 150, "adapter": 150, "sentence": 150, "export": 40, "manifest": 150,
    "export_sentence": 40, "manifest_of_sentence": 100, "manifest_of_masks": 100, "bundle_config": 100, "packed": 40,
    "tokenizer": 200, "graph": 80, "calibration": 100, "texts": 200, "predict": 100, "options": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def targets() -> Iterator[dict[str, Target]]:
    with scratch() as place:
        yield Workplace(Path(place)).targets


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_is_mended(path: Path, targets: dict[str, Target], tmp_path: Path) -> None:
    tally = Tally(path.parent.name, "corpus", 0)
    Watch(targets[path.parent.name].run, tally, tmp_path)(path.read_bytes())
    assert not tally.faults, (tmp_path / f"{next(iter(tally.faults))}.txt").read_text()


def test_seeds_are_valid(targets: dict[str, Target]) -> None:
    """Else the search would end at the first check. What `predict` and `options` are given may be refused."""
    for target in targets.values():
        for seed in target.seeds if target.name not in ("predict", "options") else ():
            target.run(seed)


@pytest.mark.parametrize("name", EXAMPLES)
def test_short_search(name: str, targets: dict[str, Target], tmp_path: Path) -> None:
    hypothesis = pytest.importorskip("hypothesis")
    from tests.fuzz.structure import inputs

    tally = Tally(name, "hypothesis", 0)
    watched = Watch(targets[name].run, tally, tmp_path)
    hypothesis.settings(
        max_examples=EXAMPLES[name], derandomize=True, database=None, deadline=None,
        phases=[hypothesis.Phase.generate], suppress_health_check=list(hypothesis.HealthCheck),
    )(hypothesis.given(inputs(targets[name]))(watched.__call__))()  # fmt: skip
    assert tally.inputs >= EXAMPLES[name]
    assert tally.accepted < tally.inputs or name in ("bundle_config", "packed", "predict")  # there a refusal is caught
    assert not tally.faults, "\n".join(path.read_text() for path in tmp_path.glob("*.txt"))


def test_targets_are_all_searched(targets: dict[str, Target]) -> None:
    assert set(EXAMPLES) == set(targets)
    assert {path.parent.name for path in FOUND} <= set(targets)


def test_a_fault_is_seen(tmp_path: Path) -> None:
    """The control: what is no MbexportError is kept, each kind once, also what derives from BaseException alone."""

    class PanicError(BaseException):
        pass

    def target(data: bytes) -> None:
        faults = {b"a": ValueError(), b"b": PanicError(), b"c": InputError("refused"), b"d": SystemExit(1)}
        if data in faults:
            raise faults[data]

    tally = Tally("control", "", 0)
    watched = Watch(target, tally, tmp_path)
    for data in (b"a", b"a", b"b", b"c", b"d", b"e"):
        watched(data)
    assert sorted(tally.faults.values()) == ["PanicError", "SystemExit", "ValueError"]
    assert (tally.inputs, tally.accepted, tally.refused) == (6, 1, 1)
    assert {(tmp_path / name).read_bytes() for name in tally.faults} == {b"a", b"b", b"d"}


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is in the environment of `make fuzz`")
def test_the_nightly_search_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.run", "--inputs", "200", "--seed", "1", "--target", "texts"]
    subprocess.run([*command, "--out", str(tmp_path / "out")], cwd=HERE.parent.parent, check=True)
    assert (tmp_path / "out" / "summary.json").is_file()
