"""Which shapes an engine is built for where the user names none. The rule is here and nowhere else.

Two profiles: one for the answer to a single text, one for many texts at once. Each reaches the
model's longest input. The second's most texts are the largest power of two, up to MOST_TEXTS,
whose activations fit in MEMORY_SHARE of the GPU's memory: a runtime reserves them for the largest
shape, whatever comes.
"""

from __future__ import annotations

import math
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
# Of each pair of places in a packed row, for attention and, where texts are pooled by a mean, again for that: in half
# precision, and in FP32.
PAIR_BYTES, PAIR_BYTES_FP32 = 2.6, 4.3
LARGEST_TENSOR = 2**31 - 1  # elements; TensorRT refuses more
LONGEST_PACKED = math.isqrt(LARGEST_TENSOR)  # places of a packed row, whose pairs are one tensor


def default_profiles(
    gpu: Gpu, spec: ModelSpec, max_length: int, precision: str, *, packed: bool = False
) -> tuple[Profile, ...]:
    """A latency and, where it fits, a throughput profile; see the module.

    Args:
        gpu: sets the memory.
        spec: the model, of which the memory follows.
        max_length: the longest input in tokens.
        precision: one of ENGINE_PRECISIONS.
        packed: the rows hold several texts each.
    """
    max_length = min(max_length, LONGEST_PACKED) if packed else max_length
    texts = MOST_TEXTS
    while texts > 1 and not _fits(texts, max_length, gpu, spec, precision, packed=packed):
        texts //= 2
    latency = _profile(1, max_length, LATENCY_FASTEST)
    return (latency,) if texts == 1 else (latency, _profile(texts, max_length, THROUGHPUT_FASTEST))


def _fits(texts: int, length: int, gpu: Gpu, spec: ModelSpec, precision: str, *, packed: bool) -> bool:
    scores = texts * spec.num_heads * length**2  # FP32 attention has no fused kernel, so they are in memory
    if _logits(texts, length, spec) > LARGEST_TENSOR or (precision == "fp32" and scores > LARGEST_TENSOR):
        return False
    if packed and texts * length**2 > LARGEST_TENSOR:
        return False
    return activation_bytes(texts, length, spec, precision, packed=packed) <= MEMORY_SHARE * gpu.memory_bytes


def activation_bytes(texts: int, length: int, spec: ModelSpec, precision: str, *, packed: bool = False) -> int:
    """What the activations of that shape take at most, in bytes.

    In half precision the larger of attention's and the MLP's; in FP32 twice that, and global
    attention's scores before and after the softmax. Fitted to TensorRT-RTX 1.7's reports of
    ``--gpu a100 --profile 1x1:8x512:8x8192``, hidden sizes 384 to 1024 with MLPs of 0.5 to 4 times
    that: 8.3 to 26.8 kB a token, of which this is 1.00 to 1.11 times as much; FP32, 1x8192 and
    32x512: 1.02 to 1.21 times. A masked language model's logits come on top, in half precision and
    as the float32 output; of packed rows, which places are of one text.
    """
    half = texts * length * max(23 * spec.hidden_size, 11 * spec.hidden_size + 6 * spec.intermediate_size)
    encoder = half if precision != "fp32" else 2 * half + 2 * 4 * texts * spec.num_heads * length**2
    pairs = _pair_bytes(texts, length, spec, precision) if packed else 0
    return encoder + pairs + (2 + 4) * _logits(texts, length, spec)


def _pair_bytes(texts: int, length: int, spec: ModelSpec, precision: str) -> int:
    """What it takes to tell the texts of packed rows apart, in bytes."""
    stage = spec.sentence or spec.head
    means = stage is not None and (stage.pooling or "").endswith(("mean", "mean_sqrt_len"))
    of_each = PAIR_BYTES_FP32 if precision == "fp32" else PAIR_BYTES
    return round(of_each * (1 + means) * texts * length**2)


def _logits(texts: int, length: int, spec: ModelSpec) -> int:
    """Numbers in the logits of a masked language model; what other heads answer is small beside them."""
    return texts * length * spec.vocab_size if spec.task == "fill-mask" else 0


def _profile(texts: int, longest: int, fastest: tuple[int, int]) -> Profile:
    return Profile((1, 1), (min(fastest[0], texts), min(fastest[1], longest)), (texts, longest))


def chosen_profiles(
    texts: Sequence[str], spec: ModelSpec, max_length: int, bundle: Path, *, packed: bool = False
) -> tuple[Profile, ...]:
    """Profiles that the user wrote.

    Raises:
        InputError: one of them is none, or reaches beyond the model's longest input or TensorRT's largest tensor.
    """
    profiles = tuple(parse_profile(text) for text in texts)
    for profile in profiles:
        if profile.largest[1] > max_length:
            raise InputError(
                f"the profile {profile} reaches {profile.largest[1]} tokens, and {bundle} takes at most {max_length}; "
                f"end it with x{max_length} or less"
            )
        rows, length = profile.largest
        if packed and rows * length**2 > LARGEST_TENSOR:
            most, longest = LARGEST_TENSOR // length**2, min(length, LONGEST_PACKED)
            raise InputError(
                f"the profile {profile} has {rows} packed rows of {length} places, and a tensor of TensorRT's holds "
                f"the pairs of {most} such rows; end it with {max(1, most)}x{longest}"
            )
        # TensorRT-RTX 1.7 builds such an engine without a word, and counts its memory wrong.
        if _logits(*profile.largest, spec) > LARGEST_TENSOR:
            most = LARGEST_TENSOR // spec.vocab_size
            raise InputError(
                f"the profile {profile} has {profile.tokens} tokens, each with {spec.vocab_size} logits, and a tensor "
                f"of TensorRT's holds those of {most}; end it with {max(1, most // profile.largest[1])}x"
                f"{min(most, profile.largest[1])} or less"
            )
    return profiles
