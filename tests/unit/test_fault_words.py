from __future__ import annotations

import numpy as np
import pytest

from mbexport.parity.diagnosis.words import channels_in_words, tokens_in_words
from mbexport.parity.samples import Case

LENGTH, HALF_WINDOW = 100, 64


def case_of(*paddings: str) -> Case:
    ids = np.ones((len(paddings), LENGTH), np.int64)
    return Case(LENGTH, ids, np.ones_like(ids), paddings)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (range(200), "200 of 200 tokens"),
        ([7], "1 of 200 tokens, place 7 of 100"),
        (range(65, 100), "35 of 200 tokens, places 65 to 99 of 100, where the window begins to cut"),
        ([103, 110], "2 of 200 tokens, all in rows with padding (right), places 3 to 10 of 100"),
    ],
)
def test_tokens(wrong: list[int], words: str) -> None:
    bad = np.isin(np.arange(200), list(wrong))
    assert tokens_in_words(bad, np.arange(200), case_of("none", "right"), HALF_WINDOW) == words


def test_texts() -> None:
    case = case_of("none", "right", "left")
    assert tokens_in_words(np.array([False, True, True]), None, case, HALF_WINDOW) == (
        "2 of 3 texts of 100 tokens, all in rows with padding (right, left)"
    )


@pytest.mark.parametrize(
    ("wrong", "heads", "words"),
    [
        (range(64), 1, "all"),
        ([5], 1, "channel 5 of 64"),
        ([5, 40], 1, "channels 5, 40 of 64"),
        (range(16, 32), 4, "16 of 64, in attention head 1"),
        (range(16, 48), 4, "32 of 64, in attention heads 1, 2"),
        (range(0, 64, 4), 4, "16 of 64"),
    ],
)
def test_channels(wrong: list[int], heads: int, words: str) -> None:
    errors = np.full((3, 64), 1e-6, np.float32)
    errors[1, list(wrong)] = 1
    assert channels_in_words(errors, heads) == words


def test_channels_that_are_no_numbers_are_the_wrong_ones() -> None:
    errors = np.ones((2, 64), np.float32)
    errors[0, 9] = np.inf
    assert channels_in_words(errors, 1) == "channel 9 of 64"
