"""Which shapes an engine is built for where the user names none. The rule is here and nowhere else.

Two profiles: one for the answer to a single text, one for many texts at once. Each reaches the
model's longest input. The second's most texts are the largest power of two, up to MOST_TEXTS,
whose activations fit in MEMORY_SHARE of the GPU's memory: a runtime reserves them for the largest
shape, whatever comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mbexport.checkpoint.spec import ModelSpec
from mbexport.engines.gpus import Gpu
from mbexport.errors import InputError
from mbexport.profiles import Profile, parse_profile

LATENCY_FASTEST = (1, 128)
THROUGHPUT_FASTEST = (8, 512)
MOST_TEXTS = 32
MEMORY_SHARE = 1 / 4
# Activations a token, in numbers of the hidden size: measured on base size, 14 to 16, rounded up.
HIDDEN_SIZES_A_TOKEN = 24
LARGEST_TENSOR = 2**31 - 1  # elements; TensorRT has no larger one
NUMBER_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}


def default_profiles(gpu: Gpu, spec: ModelSpec, max_length: int, precision: str) -> tuple[Profile, ...]:
    """A latency and a throughput profile; see the module.

    Args:
        gpu: sets the memory.
        spec: the model, of which the memory per token follows.
        max_length: the longest input in tokens.
        precision: ``fp16``, ``bf16`` or ``fp32``.
    """
    longest = max_length
    if precision == "fp32":  # its graph holds the scores, [texts, heads, length, length]
        longest = min(longest, int((LARGEST_TENSOR / spec.num_heads) ** 0.5))
    texts = MOST_TEXTS
    while texts > 1 and not _fits(texts, longest, gpu, spec, precision):
        texts //= 2
    profiles = [_profile(1, longest, LATENCY_FASTEST)]
    if texts > 1:
        profiles.append(_profile(texts, longest, THROUGHPUT_FASTEST))
    return tuple(profiles)


def _fits(texts: int, length: int, gpu: Gpu, spec: ModelSpec, precision: str) -> bool:
    needed = texts * length * spec.hidden_size * HIDDEN_SIZES_A_TOKEN * NUMBER_BYTES[precision]
    if precision == "fp32":
        scores = texts * length * length * spec.num_heads
        if scores > LARGEST_TENSOR:
            return False
        needed += 2 * scores * NUMBER_BYTES[precision]
    return needed <= MEMORY_SHARE * gpu.memory_bytes


def _profile(texts: int, longest: int, fastest: tuple[int, int]) -> Profile:
    return Profile((1, 1), (min(fastest[0], texts), min(fastest[1], longest)), (texts, longest))


def chosen_profiles(texts: Sequence[str], max_length: int, bundle: Path) -> tuple[Profile, ...]:
    """Profiles that the user wrote.

    Raises:
        InputError: one of them is none, or reaches beyond the model's longest input.
    """
    profiles = tuple(parse_profile(text) for text in texts)
    for profile in profiles:
        if profile.largest[1] > max_length:
            raise InputError(
                f"the profile {profile} reaches {profile.largest[1]} tokens, and {bundle} takes at most {max_length}; "
                f"end it with x{max_length} or less"
            )
    return profiles
