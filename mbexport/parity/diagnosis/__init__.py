"""Layer by layer: where a graph's inner values leave the model's. A placeholder, until the search itself is here."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mbexport.checkpoint.load import Checkpoint
from mbexport.checkpoint.spec import ModelSpec
from mbexport.checkpoint.weights import Weights
from mbexport.parity.report import Diagnosis
from mbexport.parity.samples import Case

FloatArray = npt.NDArray[np.float32]


class TapSource(Protocol):
    """Gives the inner values of a model."""

    def taps(self, case: Case) -> dict[str, FloatArray]:
        """By name of the stage's part."""


class TorchTaps:
    """Inner values of a checkpoint in PyTorch."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def taps(self, case: Case) -> dict[str, FloatArray]:  # noqa: ARG002 (placeholder)
        """None yet."""
        return {}


class GraphTaps:
    """Inner values of a graph."""

    def __init__(self, file: Path, precision: str) -> None:
        self._file, self._precision = file, precision

    def taps(self, case: Case) -> dict[str, FloatArray]:  # noqa: ARG002 (placeholder)
        """None yet."""
        return {}


def diagnose(
    file: Path,  # noqa: ARG001 (placeholder)
    precision: str,  # noqa: ARG001 (placeholder)
    case: Case,  # noqa: ARG001 (placeholder)
    spec: ModelSpec,  # noqa: ARG001 (placeholder)
    reference: TapSource,  # noqa: ARG001 (placeholder)
    weights: Weights | None,  # noqa: ARG001 (placeholder)
    *,
    runs_packed: bool = False,  # noqa: ARG001 (placeholder)
) -> Diagnosis | None:
    """Where a graph goes wrong; None where it says nothing of its inner values."""
    return None
