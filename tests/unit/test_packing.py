"""Which texts stand in which row."""

from __future__ import annotations

import numpy as np
import pytest

from mbexport.bench.workloads import normal_lengths
from mbexport.errors import InputError
from mbexport.profiles import parse_profiles
from mbexport.runtime.batches import Limits, plan_batches
from mbexport.runtime.forward import lay_out
from mbexport.runtime.packing import ROWS, plan_packed, positions_of
from mbexport.runtime.schedule import Run


def wasted(runs: list[Run], lengths: list[int]) -> float:
    return 1 - sum(lengths) / sum(run.tokens for run in runs)


@pytest.mark.parametrize("seed", range(5))
def test_every_text_stands_in_one_place_of_its_own(seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths = [int(length) for length in random.integers(1, 700, 200)]
    texts = [np.full(length, number + 1) for number, length in enumerate(lengths)]
    seen = []
    for run in plan_packed(lengths, Limits()):
        rows = lay_out(run, texts)
        assert rows.input_ids.shape == rows.attention_mask.shape == (run.rows, run.length)
        for number, start in zip(run.texts, rows.starts.tolist(), strict=True):
            assert start // run.length == (start + lengths[number] - 1) // run.length  # within one row
            assert (rows.input_ids.reshape(-1)[start : start + lengths[number]] == number + 1).all()
            own = rows.attention_mask.reshape(-1)[start]
            row = rows.attention_mask[start // run.length]
            assert (row == own).sum() == lengths[number] * (own > 0)
        assert ((rows.input_ids > 0) == (rows.attention_mask > 0)).all()
        seen += run.texts
    assert sorted(seen) == list(range(len(lengths)))


# The efficiency script of the ModernBERT paper draws lengths so; the paper's sets have 8,192 texts.
@pytest.mark.parametrize(("count", "mean"), [(64, 256), (1024, 256), (8, 4096), (64, 4096)])
def test_next_to_nothing_is_wasted_on_the_papers_lengths(count: int, mean: int) -> None:
    lengths = normal_lengths(count, mean, mean // 4, 2 * mean)
    packed, batched = plan_packed(lengths, Limits()), plan_batches(lengths, Limits())
    assert wasted(packed, lengths) <= 0.05
    assert wasted(packed, lengths) < wasted(batched, lengths)
    in_order = [length for start in range(0, count, 16) for length in [max(lengths[start : start + 16])] * 16]
    assert 1 - sum(lengths) / sum(in_order) > 0.25  # the control: batches of 16 as they come


def test_shapes_are_few() -> None:
    lengths = normal_lengths(1024, 256, 64, 512)
    shapes = {(run.rows, run.length) for run in plan_packed(lengths, Limits())}
    assert len(shapes) <= 10
    assert len(shapes) < len({(run.rows, run.length) for run in plan_batches(lengths, Limits(), 0.03)}) / 2


def test_a_row_is_no_longer_than_its_longest_text_needs() -> None:
    """Attention over a row costs the square of its length."""
    runs = plan_packed([8000, *[30] * 400], Limits())
    (long,) = (run for run in runs if run.length > ROWS[0])
    assert long.rows == 1


def test_a_row_takes_the_longest_text_that_fits() -> None:
    (run,) = plan_packed([300, 88, 211, 212], Limits())
    assert (run.texts, run.starts) == ((0, 3, 2, 1), (0, 300, 512, 1024))


def test_rows_fit_the_profiles_of_an_engine() -> None:
    limits = Limits(parse_profiles("1x1:1x128:1x300,2x64:8x128:16x200"))
    lengths = [300, 150, 20, *[10] * 50]
    for run in plan_packed(lengths, limits):
        assert any(
            profile.largest >= (run.rows, run.length) and profile.largest[1] >= run.length
            for profile in limits.profiles
        )
        assert run.rows <= limits.texts(run.length)
    with pytest.raises(InputError, match="a text has 301 tokens, the engine takes at most 300"):
        plan_packed([301], limits)


def test_nothing_gives_nothing() -> None:
    assert plan_packed([], Limits()) == []


def test_positions_begin_anew_with_each_text() -> None:
    texts = np.array([[1, 1, 1, 2, 2, 0, 0], [7, 8, 8, 8, 8, 8, 9]])
    assert positions_of(texts).tolist() == [[0, 1, 2, 0, 1, 0, 0], [0, 0, 1, 2, 3, 4, 0]]
