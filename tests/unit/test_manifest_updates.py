"""Several commands that write to one bundle at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mbexport import manifest as manifests
from mbexport import validate
from mbexport.bundle import half
from mbexport.bundle.engine_graph import ensure_engine_graph
from mbexport.disk.locking import locked
from mbexport.errors import BundleError
from mbexport.manifest import Check, Engine, Manifest
from mbexport.parity import run as parity
from tests.unit.test_manifest import FULL

ENGINE = Engine("e.engine", "t4", "7.5", "fp16", "tensorrt-rtx", "1", "1x1:1x1:1x1", "ab", 1, "g.onnx", "c")
WRITER = """
import sys; from pathlib import Path; from mbexport import manifest as m
for number in range(25):
    m.update(Path(sys.argv[1]), lambda old: old.with_check(m.Check(f"{sys.argv[2]} {number}", "sdpa", {}, True)))
"""


def test_no_entry_of_two_processes_is_lost(tmp_path: Path) -> None:
    manifests.write(FULL, tmp_path)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, name]) for name in "ab"]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    names = {check.what for check in manifests.read(tmp_path).checks}
    assert names == {"parity", *(f"{name} {number}" for name in "ab" for number in range(25))}
    assert [path.name for path in tmp_path.iterdir()] == ["mbexport.json"]


def test_no_entry_of_two_threads_is_lost(tmp_path: Path) -> None:
    manifests.write(FULL, tmp_path)

    def add(number: int) -> Manifest:
        return manifests.update(tmp_path, lambda old: old.with_check(Check(str(number), "sdpa", {}, True)))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(40)))
    assert len(manifests.read(tmp_path).checks) == 41


def test_lock_ends_with_its_block(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / "lock"):
            raise ZeroDivisionError
        assert list(tmp_path.iterdir()) == []


def test_place_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    manifests.write(FULL, tmp_path)
    (tmp_path / ".mbexport.json.lock").mkdir()
    with pytest.raises(OSError, match="lock"):
        manifests.update(tmp_path, lambda old: old)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def add_engine(bundle: Path) -> None:
    manifests.update(bundle, lambda old: old.with_engine(ENGINE))


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_entries_made_while_a_graph_is_written_stay(precision: str, bundle: Path, monkeypatch: Any) -> None:
    module = half if precision == "fp16" else sys.modules[ensure_engine_graph.__module__]
    build_graph = module.build_graph

    def meanwhile(*arguments: Any) -> Any:
        add_engine(bundle)
        return build_graph(*arguments)

    monkeypatch.setattr(module, "build_graph", meanwhile)
    graph = ensure_engine_graph(bundle, precision)
    assert manifests.read(bundle).engines == (ENGINE,)
    assert graph in manifests.read(bundle).graphs


def test_validate_keeps_what_was_added_and_judges_no_graph_that_is_gone(
    tiny: Path, bundle: Path, monkeypatch: Any
) -> None:
    compare = parity.compare

    def meanwhile(file: str, *rest: Any) -> Any:
        if file == "onnx/model_ort.onnx":
            add_engine(bundle)
            manifests.update(bundle, rewritten)
        return compare(file, *rest)

    def rewritten(old: Manifest) -> Manifest:
        graphs = [replace(g, sha256="other") if g.file == "onnx/model_ort.onnx" else g for g in old.graphs]
        return replace(old, graphs=tuple(graphs))

    monkeypatch.setattr(parity, "compare", meanwhile)
    assert validate(bundle, checkpoint=tiny, max_length=70).passed
    after = manifests.read(bundle)
    assert after.engines == (ENGINE,)
    assert [check.what for check in after.checks] == ["parity of onnx/model.onnx"]


def test_half_graph_that_cannot_be_built_leaves_nothing(bundle: Path, monkeypatch: Any) -> None:
    earlier = ensure_engine_graph(bundle, "fp16", keep_fp32=["head"])
    before = manifests.read(bundle), {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    monkeypatch.setattr(half, "build_graph", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ensure_engine_graph(bundle, "fp16")
    with pytest.raises(ZeroDivisionError):
        ensure_engine_graph(bundle, "bf16")
    assert earlier in manifests.read(bundle).graphs
    assert before == (manifests.read(bundle), {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()})


def test_kept_parts_are_read_from_the_manifest_alone(bundle: Path) -> None:
    graph = ensure_engine_graph(bundle, "fp16", keep_fp32=["layers.1", "head", "head"])
    assert graph.keep_fp32 == ("head", "layers.1")
    time = (bundle / graph.file).stat().st_mtime_ns
    report = bundle / "reports/precision-fp16.json"
    report.write_text("{ damaged")
    assert ensure_engine_graph(bundle, "fp16", keep_fp32=["head", "layers.1"]) == graph
    shutil.rmtree(bundle / "reports")
    assert ensure_engine_graph(bundle, "fp16", keep_fp32=["head", "layers.1"]) == graph
    assert (bundle / graph.file).stat().st_mtime_ns == time
    assert ensure_engine_graph(bundle, "fp16").keep_fp32 == ()
    assert (bundle / graph.file).stat().st_mtime_ns != time
    assert report.is_file()


def test_progress_of_the_half_graph_ends_at_its_total(bundle: Path) -> None:
    seen: list[tuple[int, int]] = []
    ensure_engine_graph(bundle, "fp16", progress=lambda done, total, _: seen.append((done, total)))
    assert seen == sorted(seen)
    assert len({total for _, total in seen}) == 1
    assert seen[-1][0] == seen[-1][1] == len({done for done, _ in seen})


@pytest.mark.skipif(os.name == "nt", reason="folders are files there, too")
def test_file_in_the_place_of_a_folder_is_named(bundle: Path) -> None:
    (bundle / "reports").write_text("")
    with pytest.raises(BundleError, match=r"bundle/reports is a file, expected a folder"):
        ensure_engine_graph(bundle, "fp16")
