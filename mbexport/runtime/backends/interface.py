"""What a backend is to the rest of the runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
POSITION_IDS = "position_ids"  # the input that graphs of packed rows have besides


class Backend(Protocol):
    """A model that is loaded and runs; safe to call from several threads."""

    @property
    def per_token(self) -> frozenset[str]:
        """Names of the outputs that have a place for each token."""

    @property
    def packs(self) -> bool:
        """Whether a row holds several texts; all outputs have a place for each token then."""

    @property
    def description(self) -> str:
        """The file, runtime and provider in use."""

    @property
    def device(self) -> str:
        """What computes: ``cpu`` or ``cuda``."""

    def width(self, output: str) -> int:
        """Size of an output's last axis, 1 where that is the tokens', 0 where there is no such output."""

    def run(
        self,
        input_ids: IntArray,
        attention_mask: IntArray,
        positions: IntArray | None = None,
        wanted: Sequence[str] | None = None,
    ) -> dict[str, FloatArray]:
        """One forward pass.

        Args:
            input_ids: [batch, sequence].
            attention_mask: [batch, sequence], 1 for real tokens, 0 for padding; where the backend packs, another
                number from 1 for each text of a row.
            positions: [selected], where only some tokens' outputs are wanted: row * sequence + place.
            wanted: names of the outputs; None for all.

        Returns:
            The outputs by name, float32; with positions those of tokens are [selected, ...].

        Raises:
            BackendError: the forward pass failed.
        """
