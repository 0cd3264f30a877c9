"""Which texts run together, and where: the plan, without any model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mbexport.errors import BackendError
from mbexport.runtime.backends.ort import OnnxRuntimeBackend
from mbexport.runtime.cores import Cores
from mbexport.runtime.schedule import MOST_PADDING, MOST_TOKENS, TOKEN_BUDGET, Run, plan_runs, share_cores


@pytest.mark.parametrize("seed", range(5))
def test_every_text_runs_once_with_little_padding(seed: int) -> None:
    lengths = [int(length) + 1 for length in np.random.default_rng(seed).lognormal(4.5, 1.2, 200)]
    runs = plan_runs(lengths)
    assert sorted(number for run in runs for number in run.texts) == list(range(len(lengths)))
    assert [run.length for run in runs] == sorted((run.length for run in runs), reverse=True)
    for run in runs:
        rows = [lengths[number] for number in run.texts]
        assert run.length == max(rows)
        assert run.length - min(rows) <= MOST_PADDING
        assert run.tokens <= MOST_TOKENS or len(rows) == 1
    assert sum(run.tokens for run in runs) <= 1.05 * sum(lengths)


def test_texts_of_one_length_fill_runs_without_padding() -> None:
    assert [len(run.texts) for run in plan_runs([128] * 9)] == [4, 4, 1]
    assert plan_runs([300, 300]) == [Run((0,), 300), Run((1,), 300)]


def test_long_texts_are_never_padded() -> None:
    assert [run.texts for run in plan_runs([200, 199, 198])] == [(0,), (1,), (2,)]


def test_a_text_that_would_need_much_padding_runs_by_itself() -> None:
    assert [run.texts for run in plan_runs([40, 30, 20])] == [(0, 1), (2,)]
    assert [run.texts for run in plan_runs([100, 20])] == [(0,), (1,)]


def test_no_texts_no_runs() -> None:
    assert plan_runs([]) == []


@pytest.mark.parametrize(
    ("lengths", "cores", "in_turn", "lanes"),
    [
        ([512], 2, 1, 1),  # one text gets all cores
        ([512] * 2, 2, 0, 2),
        ([512] * 3, 2, 3, 1),  # a core would idle for a quarter of the time
        ([512] * 7, 2, 0, 2),
        ([512] * 8, 1, 8, 1),
        ([4000, 100], 2, 2, 1),
        ([TOKEN_BUDGET // 2] * 2, 2, 0, 2),
        ([TOKEN_BUDGET] + [TOKEN_BUDGET // 2] * 4, 2, 1, 2),  # the largest by itself, then the others
        ([8192] * 16, 16, 16, 1),  # more than may be computed at one time
        ([2049] + [512] * 80, 8, 1, 8),
        ([512] * 640, 64, 0, 32),  # as many cores as the budget feeds
    ],
)
def test_where_runs_stand_side_by_side(lengths: list[int], cores: int, in_turn: int, lanes: int) -> None:
    runs = plan_runs(lengths)
    plan = share_cores(runs, cores)
    assert (len(plan.in_turn), plan.lanes) == (in_turn, lanes)
    assert {run.texts for run in (*plan.in_turn, *plan.side_by_side)} == {run.texts for run in runs}
    assert all(run.tokens * lanes <= TOKEN_BUDGET for run in plan.side_by_side)


@pytest.mark.parametrize("share", [True, False])
def test_results_come_in_order_from_one_core_each(share: bool, example_bundle: Path) -> None:
    cores = Cores(example_bundle / "onnx" / "model_ort.onnx", threads=3, share=share)
    runs = plan_runs([400] * 30)
    used: set[int] = set()

    def forward(backend: OnnxRuntimeBackend, run: Run) -> int:
        used.add(id(backend))
        return run.texts[0]

    assert [made for _, made in cores.map(forward, runs)] == [run.texts[0] for run in runs]
    assert (id(cores.all) in used) != share
    assert len(used) == 1


def test_a_failing_run_ends_the_call_and_what_had_not_begun(example_bundle: Path) -> None:
    cores = Cores(example_bundle / "onnx" / "model_ort.onnx", threads=2)
    runs = plan_runs([400] * 50)
    begun: list[Run] = []

    def forward(backend: OnnxRuntimeBackend, run: Run) -> None:
        begun.append(run)
        backend.run(np.full((1, 3), 10**9), np.ones((1, 3), np.int64))

    with pytest.raises(BackendError, match="input of shape 1x3"):
        list(cores.map(forward, runs))
    assert len(begun) < 10


def test_runs_that_wait_are_given_up_after_a_failure(example_bundle: Path) -> None:
    cores = Cores(example_bundle / "onnx" / "model_ort.onnx", threads=2)
    runs = plan_runs([400] * 50)
    begun: list[Run] = []

    def forward(_backend: OnnxRuntimeBackend, run: Run) -> None:
        begun.append(run)
        if run is runs[0]:
            raise BackendError("the first one")
        time.sleep(0.3)

    with pytest.raises(BackendError, match="the first one"):
        list(cores.map(forward, runs))
    time.sleep(1)  # long enough for all that was handed to the threads
    assert len(begun) <= 3  # the first, and those of two threads


def test_a_bundle_that_changed_is_not_mixed_with_what_was_loaded(example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    cores = Cores(bundle / "onnx" / "model_ort.onnx", threads=2)
    os.utime(bundle / "onnx" / "model.onnx_data", (1, 1))
    with pytest.raises(BackendError, match="was changed since it was loaded"):
        list(cores.map(lambda _backend, run: run.texts, plan_runs([400] * 30)))
    shutil.rmtree(bundle)
    with pytest.raises(BackendError, match="was changed since it was loaded"):
        list(cores.map(lambda _backend, run: run.texts, plan_runs([400] * 30)))


def test_the_second_session_is_found_from_another_directory(
    example_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(example_bundle)
    cores = Cores(Path("onnx/model_ort.onnx"), threads=2)
    monkeypatch.chdir(tmp_path)
    assert len(list(cores.map(lambda _backend, run: run.texts, plan_runs([400] * 30)))) == 30


def test_a_thread_that_outlives_the_main_one_is_answered(example_bundle: Path) -> None:
    script = (
        "import sys, threading, time; from mbexport.runtime import load; "
        f"model = load({str(example_bundle)!r}, threads=2); "
        "later = lambda: (time.sleep(0.5), print(len(model.logits(['some text ' * 200] * 30)))); "
        "threading.Thread(target=later).start()"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("30\n", "")
