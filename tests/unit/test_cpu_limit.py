"""Cores of a container, read from control groups as they lie on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from mbexport.runtime import cpu_limit
from mbexport.runtime.cores import Cores

GROUPS: dict[str, tuple[str, dict[str, str], int | None]] = {
    "no limit": ("0::/", {"cpu.max": "max 100000"}, None),
    "one core": ("0::/", {"cpu.max": "100000 100000"}, 1),
    "part of a core": ("0::/", {"cpu.max": "25000 100000"}, 1),
    "two and a half": ("0::/", {"cpu.max": "250000 100000"}, 3),
    "more than there are": ("0::/", {"cpu.max": "800000 100000"}, None),
    "above the own group": ("0::/pods/one", {"pods/cpu.max": "200000 100000", "pods/one/cpu.max": "max 100000"}, 2),
    "the own group is not to be seen": ("0::/kubepods/pod1", {"cpu.max": "200000 100000"}, 2),
    "version 1": (
        "4:cpu,cpuacct:/",
        {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"},
        2,
    ),
    "version 1 without a limit": (
        "4:cpu,cpuacct:/\n3:memory:/",
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        None,
    ),
    "another period": ("0::/", {"cpu.max": "20000 10000"}, 2),
    "most of one": ("0::/", {"cpu.max": "320000 100000"}, None),  # 3.2 of 4 cores: 4 threads keep it busy
    "damaged": ("0::/\nx", {"cpu.max": "a b"}, None),
    "no period": ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "0"}, None),
    "no control groups": ("", {}, None),
}


@pytest.mark.parametrize("name", GROUPS)
def test_cores_of_a_container(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, files, expected = GROUPS[name]
    (tmp_path / "own").write_text(own)
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content + "\n")
    monkeypatch.setattr(cpu_limit, "CGROUPS", tmp_path)
    monkeypatch.setattr(cpu_limit, "OWN", tmp_path / "own")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert cpu_limit.container_cores() == expected
    assert cpu_limit.available_cores() == (expected or 4)


def test_a_session_has_no_more_threads_than_its_container_cores(
    example_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbexport.runtime.cores.container_cores", lambda: 1)
    graph = example_bundle / "onnx" / "model_ort.onnx"
    assert Cores(graph).all._session.get_session_options().intra_op_num_threads == 1
    assert Cores(graph).batch_tokens * 2 == Cores(graph, 2).batch_tokens  # lanes, too
    assert Cores(graph, 2).all._session.get_session_options().intra_op_num_threads == 2
