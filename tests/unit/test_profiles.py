from __future__ import annotations

import pytest

from mbexport.errors import InputError
from mbexport.profiles import Profile, parse_profile, parse_profiles, profiles_text


def test_a_profile_is_read_and_written() -> None:
    profile = parse_profile("1x128:8x512:32x8192")
    assert profile == Profile((1, 128), (8, 512), (32, 8192))
    assert str(profile) == "1x128:8x512:32x8192"
    assert profile.tokens == 32 * 8192
    assert parse_profiles(profiles_text([profile, profile])) == (profile, profile)


@pytest.mark.parametrize(
    ("batch", "length", "accepted"),
    [(2, 128, True), (8, 512, True), (1, 128, False), (9, 128, False), (2, 127, False), (2, 513, False)],
)
def test_what_a_profile_accepts(batch: int, length: int, accepted: bool) -> None:
    assert parse_profile("2x128:4x256:8x512").accepts(batch, length) is accepted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected BATCHxLENGTH"),
        ("8x512", "has 1 shapes, expected three"),
        ("1x1:8x512:32", "expected BATCHxLENGTH"),
        ("1x1:8x-5:32x8", "expected BATCHxLENGTH"),
        ("1x1:8x512:4x512", "batch is 1:8:4"),
        ("1x64:8x32:8x128", "length is 64:32:128"),
        ("0x1:1x1:1x1", "batch is 0:1:1"),
        ("1x1:1x1:1x9999999999", "length is 1:1:9999999999"),
        ("1x1:1x1:1x" + "9" * 5000, "expected BATCHxLENGTH"),
    ],
)
def test_other_texts_are_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_profile(text)
