"""Which texts run together, and where: the plan, without any model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mbexport.errors import BackendError
from mbexport.runtime.backends.ort import OnnxRuntimeBackend
from mbexport.runtime.cores import Cores
from mbexport.runtime.schedule import MOST_PADDING, MOST_TOKENS, TOKEN_BUDGET, Run, plan_runs, side_by_side


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


def test_no_texts_no_runs() -> None:
    assert plan_runs([]) == []


@pytest.mark.parametrize(
    ("lengths", "cores", "expected"),
    [
        ([512], 2, False),  # one text gets all cores
        ([512] * 2, 2, True),
        ([512] * 3, 2, False),  # a core would idle for a quarter of the time
        ([512] * 7, 2, True),
        ([512] * 8, 1, False),
        ([4000, 100], 2, False),
        ([TOKEN_BUDGET // 2] * 2, 2, True),
        ([TOKEN_BUDGET // 2] * 3 + [TOKEN_BUDGET], 2, False),
        ([8192] * 16, 16, False),  # more than may be computed at one time
    ],
)
def test_where_runs_stand_side_by_side(lengths: list[int], cores: int, expected: bool) -> None:
    assert side_by_side(plan_runs(lengths), cores) == expected


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
