"""``mbexport prepack``: the same answers from a file that is mapped, and where it is of no use that is said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mbexport import export_onnx
from mbexport.cli import main
from mbexport.runtime import FallbackWarning, load
from mbexport.runtime.kernels import OFF, VARIABLE, kernels
from mbexport.runtime.prepacked import RECORD, cpu_kind
from mbexport.runtime.prepacked import prepack as prepack_bundle
from tests.checkpoints import copy_example, edit_tensors
from tests.int8 import add_int8

FILE = "model_ort_prepacked.onnx"
TEXTS = ["The striker scored twice.", "", "The bank raised its interest rate. " * 60]


@pytest.fixture
def bundle(example_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(example_bundle, tmp_path / "bundle"))


def prepack(bundle: Path, *options: str) -> Path:
    result = CliRunner().invoke(main, ["prepack", str(bundle), *options])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"prepacked  {bundle / 'prepacked' / 'model_ort'}: ")
    return bundle / "prepacked" / "model_ort"


def test_prepacked_weights_answer_the_same(bundle: Path) -> None:
    expected = load(bundle).logits(TEXTS)
    folder = prepack(bundle)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load(bundle)
    assert model._executor._graph == (folder / FILE).resolve()
    assert model.description.startswith(FILE)
    assert np.array_equal(model.logits(TEXTS), expected)
    assert np.abs(load(bundle, threads=1).logits(TEXTS) - expected).max() < 1e-5  # other sessions, other sums


MEMORY = """
import sys
from mbexport.runtime import load
load(sys.argv[1], share_cores=False)(["The striker scored twice."])
fields = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
print(fields["Anonymous"].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux says what memory is a process's own")
def test_weights_are_not_in_a_processes_own_memory(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With kernels they never are; without, once they are packed."""

    def own_kilobytes() -> int:
        command = [sys.executable, "-c", MEMORY, str(bundle)]
        return min(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3))

    matrices = 7_000  # kB of the example's layers
    with_kernels = own_kilobytes() if kernels().library else 0
    monkeypatch.setenv(VARIABLE, OFF)
    before = own_kilobytes()
    assert with_kernels < before - matrices / 2
    prepack(bundle)
    assert own_kilobytes() < before - matrices / 2


@pytest.mark.parametrize("what", ["graph", "weights", "onnxruntime", "cpu", "incomplete"])
def test_what_was_made_elsewhere_is_passed_over_and_said(what: str, bundle: Path) -> None:
    expected = load(bundle).logits(TEXTS)
    folder = prepack(bundle)
    if what == "incomplete":
        (folder / f"{FILE}_data").write_bytes(b"")
    else:
        record = json.loads((folder / RECORD).read_text())
        (folder / RECORD).write_text(json.dumps(record | {what: "another"}))
    found = "is incomplete" if what == "incomplete" else f"was made for {what} 'another', here it is"
    with pytest.warns(FallbackWarning, match=f"{found}.*packed here: mbexport prepack"):
        model = load(bundle)
    assert model.description.startswith("model_ort.onnx")
    assert np.array_equal(model.logits(TEXTS), expected)
    prepack(bundle)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(bundle)


@pytest.mark.parametrize("damage", [RECORD, FILE])
def test_what_is_damaged_is_passed_over_and_said(damage: str, bundle: Path) -> None:
    expected = load(bundle).logits(TEXTS)
    file = prepack(bundle) / damage
    file.write_bytes(b"{".ljust(file.stat().st_size, b"{"))
    with pytest.warns(FallbackWarning, match=rf"{damage} .*packed here: mbexport prepack"):
        assert np.array_equal(load(bundle).logits(TEXTS), expected)


def test_other_weights_of_the_same_graph_are_never_answered_for(bundle: Path, tmp_path: Path) -> None:
    """Two fine-tunes of one architecture have equal graph files."""
    checkpoint = copy_example(tmp_path / "checkpoint")
    edit_tensors(checkpoint, lambda tensors: tensors | {"classifier.weight": -tensors["classifier.weight"]})
    export_onnx(checkpoint, tmp_path / "other")
    expected = load(tmp_path / "other").logits(TEXTS)
    prepack(bundle)
    shutil.copytree(tmp_path / "other", bundle, dirs_exist_ok=True)
    with pytest.warns(FallbackWarning, match="was made for weights"):
        model = load(bundle)
    assert np.array_equal(model.logits(TEXTS), expected)


def test_what_is_packed_already_is_left_to_who_has_it_mapped(bundle: Path) -> None:
    inodes = {path.name: path.stat().st_ino for path in prepack(bundle).iterdir()}
    model = load(bundle)
    assert {path.name: path.stat().st_ino for path in prepack(bundle).iterdir()} == inodes
    assert len(model(TEXTS * 20)) == 60  # side by side: a second session of the same file


def test_prepacking_many_times_at_once(bundle: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = {task.result() for task in [pool.submit(prepack_bundle, bundle) for _ in range(8)]}
    assert folders == {bundle / "prepacked" / "model_ort"}
    assert [path.name for path in (bundle / "prepacked").iterdir()] == ["model_ort"]


def test_int8_is_refused_and_left_alone(bundle: Path) -> None:
    add_int8(bundle, "model_int8.onnx", bits=7)
    expected = load(bundle, precision="int8").logits(TEXTS)
    result = CliRunner().invoke(main, ["prepack", str(bundle), "--precision", "int8"])
    assert result.exit_code == 2
    assert "is int8, and ONNX Runtime crashes on packed weights of that; pack the other graph" in result.stderr
    (bundle / "prepacked" / "model_int8").mkdir(parents=True)
    (bundle / "prepacked" / "model_int8" / RECORD).write_text("{}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        assert np.array_equal(load(bundle, precision="int8").logits(TEXTS), expected)


def test_bad_use(tmp_path: Path, bundle: Path) -> None:
    result = CliRunner().invoke(main, ["prepack", str(tmp_path)])
    assert result.exit_code == 2
    assert "is no bundle" in result.stderr
    result = CliRunner().invoke(main, ["prepack", str(bundle), "--precision", "int8"])
    assert result.exit_code == 2
    assert "holds no int8 graph" in result.stderr
    assert not (bundle / "prepacked").exists()


def test_the_kind_of_a_cpu_is_told_from_what_it_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    here = cpu_kind()
    assert here == cpu_kind()
    text = "flags : avx avx2\n"
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    monkeypatch.setattr(Path, "open", lambda *_, **__: StringIO(text))
    older = cpu_kind()
    text = "flags : avx2 avx\n"
    assert cpu_kind() == older
    text = "flags : avx avx2 avx512f\n"
    assert cpu_kind() not in (older, here)
