"""Attention over texts of several lengths without padding, by whichever package has a kernel that runs here.

Queries, keys and values are [tokens, heads, size], texts one after the other; ``starts`` is int32 [texts + 1], where
each begins. A query sees the keys of its own text, in local layers those at most ``reach`` places away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (as everybody calls it)

from benchmarks.gpu.rates import median_seconds
from mbexport.processes import one_line

Tensor = torch.Tensor
Call = Callable[[Tensor, Tensor, Tensor, Tensor, int, "int | None"], Tensor]
LARGEST_ERROR = 1e-2  # of random normal values, in FP16
LENGTHS, HEADS, SIZE, REACH = (1, 65, 300, 129), 4, 64, 64  # of the trial
ROWS, LENGTH = 32, 512  # of the timing


@dataclass(frozen=True)
class Kernel:
    """A kernel: its name, and seconds of a local and a global layer's attention."""

    name: str
    call: Call
    seconds: float


def by_text(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, reach: int | None) -> Tensor:
    """The definition, text by text; for a CPU, and to compare kernels with."""
    del longest
    parts = []
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        one = [x[start:end].transpose(0, 1) for x in (q, k, v)]  # [heads, length, size]
        places = torch.arange(end - start, device=q.device)
        mask = None if reach is None else (places[:, None] - places).abs() <= reach
        parts.append(F.scaled_dot_product_attention(*one, attn_mask=mask).transpose(0, 1))
    return torch.cat(parts)


BY_TEXT = Kernel("by text, for want of a GPU", by_text, 0.0)


def _flash_attn_4() -> Call:
    from flash_attn.cute import flash_attn_varlen_func

    return _as_call(flash_attn_varlen_func, (None, None))


def _flash_attn_3() -> Call:
    from flash_attn_interface import flash_attn_varlen_func

    return _as_call(flash_attn_varlen_func, (-1, -1))


def _flash_attn_2() -> Call:
    from flash_attn import flash_attn_varlen_func

    return _as_call(flash_attn_varlen_func, (-1, -1))


def _as_call(function: Any, everything: tuple[Any, Any]) -> Call:
    """The interface that all of flash-attn's generations share; ``everything`` is the window of global layers."""

    def call(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, reach: int | None) -> Tensor:
        result = function(
            q, k, v, cu_seqlens_q=starts, cu_seqlens_k=starts, max_seqlen_q=longest, max_seqlen_k=longest,
            window_size=everything if reach is None else (reach, reach),
        )  # fmt: skip
        return result[0] if isinstance(result, tuple) else result

    return call


def _torch_varlen() -> Call:
    from torch.nn.attention.varlen import varlen_attn

    def call(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, reach: int | None) -> Tensor:
        window = (-1, -1) if reach is None else (reach, reach)
        return varlen_attn(q, k, v, starts, starts, longest, longest, window_size=window)

    return call


PACKAGES: dict[str, Callable[[], Call]] = {
    "flash-attn-4": _flash_attn_4,
    "flash-attn-3": _flash_attn_3,
    "flash-attn": _flash_attn_2,
    "torch varlen_attn": _torch_varlen,
}


def best_kernel(
    device: str, dtype: torch.dtype, packages: Mapping[str, Callable[[], Call]] = PACKAGES
) -> tuple[Kernel | None, dict[str, str]]:
    """The fastest kernel that computes the definition, and what became of each.

    Args:
        device: ``cuda``, which all of them need.
        dtype: of queries, keys and values.
        packages: by name, what loads a kernel.
    """
    found, told = [], {}
    for name, load in packages.items():
        try:
            call = load()
            error = max(_errors(call, device, dtype))
            if not error <= LARGEST_ERROR:
                told[name] = f"WRONG: an error of {error:.1e} on lengths {LENGTHS}"
                continue
            found.append(Kernel(name, call, _seconds(call, device, dtype)))
        except Exception as cause:  # whatever a package for another GPU raises
            told[name] = f"does not run: {one_line(cause, 200)}"
        else:
            told[name] = f"{found[-1].seconds * 1e6:.0f} us for a global and a local layer of {ROWS}x{LENGTH}"
    return min(found, key=lambda kernel: kernel.seconds, default=None), told


def as_operator(kernel: Kernel) -> Kernel:
    """A kernel as an operator of PyTorch's: torch.compile takes it as it is, and does not trace into its package."""
    schema = "(Tensor q, Tensor k, Tensor v, Tensor starts, int longest, int reach) -> Tensor"

    def compute(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, reach: int) -> Tensor:
        return kernel.call(q, k, v, starts, longest, None if reach < 0 else reach).contiguous()

    def shaped(q: Tensor, *_others: Any) -> Tensor:
        return torch.empty(q.shape, dtype=q.dtype, device=q.device)

    operator = torch.library.custom_op("mbexport_benchmark::varlen", compute, mutates_args=(), schema=schema)
    operator.register_fake(shaped)

    def call(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, reach: int | None) -> Tensor:
        return operator(q, k, v, starts, longest, -1 if reach is None else reach)

    return Kernel(kernel.name, call, kernel.seconds)


def _errors(call: Call, device: str, dtype: torch.dtype) -> Iterator[float]:
    """Largest error against the definition in float32, of global and of local attention."""
    starts = _starts(LENGTHS, device)
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(sum(LENGTHS), HEADS, SIZE, generator=generator).to(device, dtype) for _ in range(3)]
    for reach in (None, REACH):
        expected = by_text(*(x.float() for x in qkv), starts, max(LENGTHS), reach)
        yield float((call(*qkv, starts, max(LENGTHS), reach).float() - expected).abs().max())


def _seconds(call: Call, device: str, dtype: torch.dtype) -> float:
    starts = _starts((LENGTH,) * ROWS, device)
    qkv = [torch.randn(ROWS * LENGTH, 12, SIZE, device=device, dtype=dtype) for _ in range(3)]
    return median_seconds(lambda: [call(*qkv, starts, LENGTH, reach) for reach in (None, REACH)], device)


def _starts(lengths: tuple[int, ...], device: str) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
