from __future__ import annotations

import numpy as np
import pytest

from mbexport.errors import InputError
from mbexport.profiles import parse_profiles
from mbexport.runtime.backends.session import fill
from mbexport.runtime.batches import ENOUGH_TOKENS, MOST_PADDING, Limits, plan_batches, rounded, token_budget
from mbexport.runtime.schedule import TOKEN_BUDGET
from mbexport.runtime.shapes import STEP, Fit, choose_profile, grown, places_in, resolved, size_of

TWO = parse_profiles("1x1:8x128:32x512,1x16:1x2048:4x8192")


@pytest.mark.parametrize(
    ("batch", "length", "fit"),
    [
        (1, 1, Fit(0, 1, 1)),
        (32, 512, Fit(0, 32, 512)),
        (4, 513, Fit(1, 4, 513)),
        (1, 512, Fit(1, 1, 512)),  # nearer to 1x2048, the shape of one text, than to 8x128
        (1, 2000, Fit(1, 1, 2000)),
        (33, 1, None),
        (5, 513, None),
        (1, 8193, None),
    ],
)
def test_a_profile_for_a_batch(batch: int, length: int, fit: Fit | None) -> None:
    assert choose_profile(TWO, batch, length) == fit


def test_of_two_profiles_the_one_that_pads_less() -> None:
    profiles = parse_profiles("8x64:8x64:8x512,2x100:2x100:2x512")
    assert choose_profile(profiles, 1, 30) == Fit(1, 2, 100)
    assert choose_profile(profiles, 3, 30) == Fit(0, 8, 64)


def test_sizes() -> None:
    assert resolved((-1, -1, 7), 3, 5) == (3, 5, 7)
    assert resolved((-1, 7), 3, 5) == (3, 7)
    assert size_of((3, 5, 7), 4) == 420
    assert size_of((), 8) == 8
    assert grown(0, 1) == STEP
    assert grown(STEP, STEP) == STEP
    assert grown(4 * STEP, 4 * STEP + 1) == 6 * STEP
    assert grown(STEP, 9 * STEP + 1) == 10 * STEP
    assert places_in([0, 5, 6, 11], length=6, padded=8) == [0, 5, 8, 13]


def test_what_a_batch_is_filled_up_with() -> None:
    target = np.full((4, 5), -1)
    fill(target, np.array([[1, 2, 3], [4, 5, 6]]))
    assert target.tolist() == [[1, 2, 3, 0, 0], [4, 5, 6, 0, 0], [1, 2, 3, 0, 0], [1, 2, 3, 0, 0]]


def test_rounded_lengths_pad_little_and_come_again() -> None:
    assert [rounded(length) for length in (1, 8, 9, 127, 129, 257, 1000, 8192)] == [8, 8, 16, 128, 136, 272, 1024, 8192]
    assert all(0 <= rounded(n) - n < max(8, n / 15) for n in range(1, 8193))
    assert len({rounded(n) for n in range(1, 8193)}) < 120


def check(lengths: list[int], limits: Limits) -> float:
    """What must hold of every plan; gives the share of padding."""
    runs = plan_batches(lengths, limits)
    assert sorted(number for run in runs for number in run.texts) == list(range(len(lengths)))
    for run in runs:
        assert run.length >= max(lengths[number] for number in run.texts)
        assert len(run.texts) == 1 or run.tokens <= limits.tokens
        if limits.profiles:
            fit = choose_profile(limits.profiles, len(run.texts), run.length)
            assert fit
            least = limits.profiles[fit.profile].smallest[0]
            assert fit.batch * fit.length <= limits.tokens or len(run.texts) == 1 or fit.batch == least
        real = sum(lengths[number] for number in run.texts)
        assert len(run.texts) == 1 or run.tokens <= ENOUGH_TOKENS or run.tokens - real <= MOST_PADDING * run.tokens
    return 1 - sum(lengths) / sum(run.tokens for run in runs)


PROFILES = ["", "1x1:8x128:32x8192", "1x1:8x128:32x500,1x16:1x2048:4x8192", "4x64:4x64:4x8192", "1x512:8x512:32x8192"]


@pytest.mark.parametrize("budget", [TOKEN_BUDGET, 5368])
@pytest.mark.parametrize("profiles", PROFILES)
def test_plans(profiles: str, budget: int) -> None:
    limits = Limits(parse_profiles(profiles) if profiles else (), budget)
    rng = np.random.default_rng(0)
    for count in (0, 1, 2, 7, 300):
        for longest in (1, 30, 512, 8192):
            check(rng.integers(1, longest, count, endpoint=True).tolist() or [1], limits)
    assert check(rng.integers(1, 2048, 2000).tolist(), Limits()) < 0.1


def test_batches_are_as_large_as_profile_and_budget_allow() -> None:
    lengths = [128] * 100
    assert [len(run.texts) for run in plan_batches(lengths, Limits())] == [100]
    assert [len(run.texts) for run in plan_batches(lengths, Limits(TWO))] == [32, 32, 32, 4]
    assert [len(run.texts) for run in plan_batches([8192] * 3, Limits(TWO))] == [2, 1]
    assert len(plan_batches([10, 100, 200], Limits())) == 1  # a launch costs more than the padding
    assert plan_batches([], Limits(TWO)) == []


def test_rows_stay_within_the_profile_that_takes_the_text() -> None:
    limits = Limits(parse_profiles("1x1:8x100:8x500,1x1:1x2048:2x2048"))
    assert (limits.row(490), limits.texts(500)) == (496, 8)
    assert limits.row(499) == 500  # 512 would be the other profile's
    assert limits.row(501) == 512
    assert limits.texts(512) == 2


def test_a_profile_of_long_rows_does_not_take_short_texts_for_its_larger_batch() -> None:
    assert Limits(parse_profiles("1x1:8x100:8x128,4x512:4x512:16x1024")).texts(128) == 8


def test_the_budget_is_of_rows_as_the_profile_pads_them() -> None:
    limits = Limits(parse_profiles("1x512:8x512:32x512"), 5368)
    assert limits.texts(16) == limits.texts(512) == 10
    assert max(len(run.texts) for run in plan_batches([16] * 100, limits)) == 10


def test_too_long() -> None:
    with pytest.raises(InputError, match="a text has 8193 tokens, the engine takes at most 8192"):
        plan_batches([5, 8193], Limits(TWO))


def test_wide_outputs_take_fewer_tokens() -> None:
    assert token_budget([3]) == token_budget([]) == TOKEN_BUDGET
    assert token_budget([50_368]) == 2**30 // (4 * 50_368)
