"""What is run: token ids from a seed, or made of a user's texts, and how peers pad them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mbexport.errors import InputError

IntArray = npt.NDArray[np.int64]

SEED = 42
LOWEST_ID, HIGHEST_ID = 100, 16_000  # below are special tokens, above is little
PADDINGS = ("none", "longest", "fixed")
LONG = 4096  # tokens of a row from which memory decides who can run
USER_SHAPES = ("1x16", "1x128", "8x128", "1x512", "1x2048")
SHAPES = ("1x16", "1x128", "8x128", "1x512", "8x512", "1x2048", "1x8192")
FILE_BATCH = 16  # texts of a peer's batch, of a user's file


@dataclass(frozen=True, eq=False)
class Workload:
    """Texts that a contender runs all of, in one go.

    Attributes:
        name: how tables name it.
        texts: int64 [tokens] each, without padding.
        batch: texts of a peer's batch, taken in order.
        padding: what peers pad a batch to: ``none`` (all are of one length), ``longest``
            (its longest text) or ``fixed`` (``row``).
        row: tokens of every row of peers' batches, where padding is ``fixed``.
        given_padded: our own contender gets the padded rows too.
        pad_id: the token that fills rows.
        mask_id: fill-mask: outputs are compared where this token stands.
    """

    name: str
    texts: tuple[IntArray, ...]
    batch: int
    padding: str = "none"
    row: int | None = None
    given_padded: bool = False
    pad_id: int = 0
    mask_id: int | None = None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each text."""
        return tuple(len(text) for text in self.texts)

    @property
    def tokens(self) -> int:
        """Real tokens of all texts."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest row that some contender runs."""
        return self.row or max(self.lengths)

    def batches(self) -> Iterator[tuple[IntArray, IntArray]]:
        """Peers' batches: ids and mask, int64 [batch, row], texts on the left of their rows."""
        for start in range(0, len(self.texts), self.batch):
            texts = self.texts[start : start + self.batch]
            row = self.row or max(map(len, texts))
            ids = np.full((len(texts), row), self.pad_id, np.int64)
            mask = np.zeros_like(ids)
            for number, text in enumerate(texts):
                ids[number, : len(text)] = text
                mask[number, : len(text)] = 1
            yield ids, mask

    def save(self, path: Path) -> None:
        """Write it for a worker to :meth:`load`."""
        meta = np.array([self.batch, PADDINGS.index(self.padding), self.row or 0, int(self.given_padded), self.pad_id])
        mask = np.array([] if self.mask_id is None else [self.mask_id])
        np.savez(path, name=self.name, ids=np.concatenate(self.texts), lengths=self.lengths, meta=meta, mask=mask)

    @staticmethod
    def load(path: str | Path) -> Workload:
        """What :meth:`save` wrote."""
        with np.load(path) as file:
            batch, padding, row, given_padded, pad_id = (int(value) for value in file["meta"])
            texts = np.split(file["ids"].astype(np.int64), np.cumsum(file["lengths"])[:-1])
            mask_id = int(file["mask"][0]) if len(file["mask"]) else None
            return Workload(
                str(file["name"]), tuple(texts), batch, PADDINGS[padding], row or None, bool(given_padded), pad_id,
                mask_id,
            )  # fmt: skip


@dataclass(frozen=True)
class Maker:
    """Makes random workloads for one model.

    ``vocab_size``, ``pad_id``, ``mask_id`` as its config and tokenizer have them; with a mask
    id, each text gets one mask, in its middle.
    """

    vocab_size: int
    pad_id: int = 0
    mask_id: int | None = None

    def shape(self, name: str) -> Workload:
        """``BxL``: B texts of L tokens in one batch.

        Raises:
            InputError: ``name`` is no such shape.
        """
        count, length = parse_shape(name)
        return self._workload(name, [length] * count, count, "none")

    def texts(self, name: str, lengths: Sequence[int], batch: int) -> Workload:
        """Texts of these lengths, in this order; a peer's batches are as long as their longest text."""
        return self._workload(name, lengths, batch, "longest")

    def padded(self, length: int) -> Workload:
        """One text of two thirds of ``length`` tokens, in a row of ``length``, for every contender."""
        unpadded = self._workload(f"1x{length}-padded", [2 * length // 3], 1, "fixed", length)
        return dataclasses.replace(unpadded, given_padded=True)

    def efficiency_sets(self) -> list[Workload]:
        """The four sets of the ModernBERT paper's efficiency script with fewer texts, as a CPU can run them.

        Texts of equal length, and of lengths Normal(mean, mean / 4); the latter padded to the
        longest that there may be, as the paper runs them, and batch by batch.
        """
        short, long = normal_lengths(64, 256, 64, 512), normal_lengths(4, 4096, 1024, 8192)
        return [
            self._workload("fixed-short", [512] * 32, 16, "none"),
            self._workload("variable-short-fixed", short, 16, "fixed", 512),
            self._workload("variable-short-longest", short, 16, "longest"),
            self._workload("fixed-long", [8192] * 2, 1, "none"),
            self._workload("variable-long-fixed", long, 2, "fixed", 8192),
            self._workload("variable-long-longest", long, 2, "longest"),
        ]

    def from_ids(self, name: str, texts: Sequence[IntArray]) -> Workload:
        """Texts that a tokenizer made ids of, by length, so that peers pad their batches little."""
        return Workload(
            name, tuple(sorted(texts, key=len)), FILE_BATCH, "longest", pad_id=self.pad_id, mask_id=self.mask_id
        )

    def _workload(
        self, name: str, lengths: Sequence[int], batch: int, padding: str, row: int | None = None
    ) -> Workload:
        random = np.random.default_rng(SEED)
        highest = min(HIGHEST_ID, self.vocab_size)
        lowest = min(LOWEST_ID, highest // 2)
        texts = tuple(random.integers(lowest, highest, length, dtype=np.int64) for length in lengths)
        if self.mask_id is not None:
            for text in texts:
                text[len(text) // 2] = self.mask_id
        return Workload(name, texts, batch, padding, row, pad_id=self.pad_id, mask_id=self.mask_id)


def parse_shape(name: str) -> tuple[int, int]:
    """``8x128`` to (8 texts, 128 tokens).

    Raises:
        InputError: ``name`` is no such shape.
    """
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", name.strip())
    if match is None:
        raise InputError(f"--shapes: found {name!r}, expected texts x tokens, e.g. 8x128")
    return int(match[1]), int(match[2])


def normal_lengths(count: int, mean: int, deviation: int, longest: int) -> list[int]:
    """Lengths drawn from Normal(mean, deviation), from 16 to ``longest`` tokens, always the same."""
    drawn = np.random.default_rng(SEED).normal(mean, deviation, count)
    return [int(length) for length in np.clip(np.rint(drawn), 16, longest)]
