"""Two commands on one bundle at once: one waits, nothing is lost, none sees half of the other's work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mbexport import export_onnx, package
from mbexport import manifest as manifests
from mbexport.disk.claims import LOCK, claimed
from mbexport.disk.temporary import beside, folder_beside
from mbexport.disk.writing import new_directory
from mbexport.errors import BundleError
from mbexport.files import no_progress
from mbexport.precision.calibration import Calibration
from mbexport.quantize.write import CALIBRATION_FILE
from mbexport.runtime import load
from mbexport.verifying import wrong_files
from tests.breaking.kills import INT8, TEXTS, make_checkpoints

pytestmark = pytest.mark.skipif(os.name == "nt", reason="on Windows nothing is claimed")
WAITING = "note: waiting until another command is done with bundle\n"


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("seed")
    make_checkpoints(place)
    export_onnx(place / "seed" / "old", place / "seed" / "bundle")
    return place / "seed"


@pytest.fixture
def folder(seed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(seed, tmp_path / "work"))


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mbexport", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def answers(bundle: Path) -> np.ndarray:
    return load(bundle, "cpu", "fp32", 1).logits(list(TEXTS))


@pytest.mark.parametrize("shared", [False, True], ids=["another writer", "a reader"])
def test_who_changes_a_bundle_waits_for(shared: bool, folder: Path) -> None:
    with claimed(folder / "bundle", no_progress, shared=shared):
        process = start(folder, "prepack", "bundle")
        assert first_line(process) == WAITING
        assert not (folder / "bundle" / "prepacked").exists()
    assert process.wait(60) == 0
    assert (folder / "bundle" / "prepacked").exists()
    assert not (folder / "bundle" / LOCK).exists()


def test_readers_do_not_wait_for_each_other(folder: Path) -> None:
    with claimed(folder / "bundle", no_progress, shared=True):
        with claimed(folder / "bundle", no_progress, shared=True):
            package(folder / "bundle", folder / "served")
        process = start(folder, "prepack", "bundle")  # the one that is left keeps writers out
        assert first_line(process) == WAITING
        process.kill()
    process.wait()
    assert not (folder / "bundle" / LOCK).exists()


def test_replacing_waits_and_the_old_bundle_answers_meanwhile(folder: Path) -> None:
    before = answers(folder / "bundle")
    with claimed(folder / "bundle", no_progress):
        process = start(folder, "onnx", "new", "-o", "bundle", "--force")
        while (line := first_line(process)) and line != WAITING:
            pass
        assert line == WAITING
        np.testing.assert_array_equal(answers(folder / "bundle"), before)
    assert process.wait(60) == 0
    assert np.abs(answers(folder / "bundle") - before).max() > 0.1


def test_who_waited_works_on_the_bundle_that_took_the_place(folder: Path) -> None:
    bundle, seen, waits = folder / "bundle", [], threading.Event()

    def wait_for_it() -> None:
        with claimed(bundle, lambda *_: waits.set()):
            seen.append(((bundle / "mark").exists(), (bundle / LOCK).exists()))

    thread = threading.Thread(target=wait_for_it)

    @contextmanager
    def alone() -> Iterator[None]:
        with claimed(bundle, no_progress):
            thread.start()
            assert waits.wait(30)
            yield

    with new_directory(bundle, replace=True, alone=alone()) as directory:
        shutil.copytree(bundle, directory, dirs_exist_ok=True)
        (directory / "mark").touch()
    thread.join(30)
    assert seen == [(True, True)]


def test_int8_while_the_bundle_is_replaced_belongs_to_the_weights_beside_it(folder: Path) -> None:
    """Without claims, graphs made of the old weights came into the new bundle."""
    int8 = start(folder, *INT8)
    bundle = folder / "bundle"
    end = time.monotonic() + 60
    while not list(bundle.glob(".calibration.npz.*")) and time.monotonic() < end and int8.poll() is None:
        time.sleep(0.01)
    replacing = start(folder, "onnx", "new", "-o", "bundle", "--force")
    assert (int8.wait(120), replacing.wait(120)) in ((0, 0), (1, 0))
    manifest = manifests.read(bundle)
    assert wrong_files(bundle, manifest) == []
    if (bundle / CALIBRATION_FILE).exists():
        assert Calibration.load(bundle / CALIBRATION_FILE).source == manifest.source.sha256
    else:
        assert {graph.precision for graph in manifest.graphs} == {"fp32"}


def test_two_exports_to_one_place(folder: Path) -> None:
    both = [start(folder, "onnx", name, "-o", "both") for name in ("old", "new")]
    ends = [(process.wait(60), process.stderr.read() if process.stderr else "") for process in both]
    refused = [said for code, said in ends if code == 2]
    assert sorted(code for code, _ in ends) == [0, 2]
    assert "meanwhile" in refused[0] or "exists" in refused[0] or "not empty" in refused[0]
    assert wrong_files(folder / "both", manifests.read(folder / "both")) == []
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_place_that_was_taken_meanwhile_is_not_replaced_unasked(tmp_path: Path) -> None:
    def make() -> None:
        with new_directory(tmp_path / "target", replace=False):
            (tmp_path / "target").mkdir()
            (tmp_path / "target" / "precious").touch()

    with pytest.raises(BundleError, match="was made by another command meanwhile"):
        make()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["target", "target/precious"]


HOLDER = """
import sys; from pathlib import Path; from mbexport.disk.temporary import beside, folder_beside
with beside(Path(sys.argv[1])) as file, folder_beside(Path(sys.argv[1])) as folder:
    print(file.name, folder.name, flush=True)
    sys.stdin.readline()
"""


def test_temporary_files_in_use_stay_and_those_of_the_dead_go(tmp_path: Path) -> None:
    target = tmp_path / "a [strange] name"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    theirs = _names(tmp_path)
    assert len(theirs) == 2
    with beside(target), folder_beside(target):
        assert set(theirs) < set(_names(tmp_path))
    assert _names(tmp_path) == theirs
    holder.kill()
    holder.communicate()
    assert _names(tmp_path) == theirs
    with beside(target) as file:
        assert _names(tmp_path) == [file.name]
    assert _names(tmp_path) == []


def _names(folder: Path) -> Sequence[str]:
    return sorted(path.name for path in folder.iterdir())
