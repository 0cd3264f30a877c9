"""What calibration found of each site: enough to make every quantized graph of a bundle, now or later."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile

import numpy as np
import numpy.typing as npt

from mbexport.errors import BundleError
from mbexport.precision.strength import Choice, SiteFigures

FloatArray = npt.NDArray[np.float32]
# What zipfile and NumPy raise at damaged files; RuntimeError: of another version, or with a password.
DAMAGED = (
    OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, ArithmeticError, MemoryError, RuntimeError,
    BadZipFile, zlib.error, struct.error,
)  # fmt: skip
FIGURES = tuple(field.name for field in fields(SiteFigures))  # in the order that files have them in


@dataclass(frozen=True)
class Calibration:
    """Smoothing and ranges of a model.

    Attributes:
        source: SHA-256 of the checkpoint's weights that it belongs to.
        texts: how many texts it was taken from.
        sites: what was chosen, by name of the site.
    """

    source: str
    texts: int
    sites: Mapping[str, Choice]

    def save(self, file: Path) -> None:
        """Write it as NumPy's npz: for each site its factors, and its figures in the order of FIGURES."""
        arrays: dict[str, npt.NDArray[np.generic]] = {"source": np.array(self.source), "texts": np.array(self.texts)}
        for name, choice in self.sites.items():
            arrays[f"{name}.factor"] = choice.factor
            arrays[f"{name}.figures"] = np.array([getattr(choice, figure) for figure in FIGURES])
        with file.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, file: Path) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            BundleError: the file is missing or damaged.
        """
        try:
            with np.load(file, allow_pickle=False) as arrays:
                if any(part.compress_type != ZIP_STORED for part in arrays.zip.infolist()):
                    raise ValueError("it is compressed, which mbexport does not write")
                names = [name.removesuffix(".factor") for name in arrays.files if name.endswith(".factor")]
                sites = {name: _choice(arrays[f"{name}.factor"], arrays[f"{name}.figures"].tolist()) for name in names}
                return cls(str(arrays["source"]), int(arrays["texts"]), sites)
        except FileNotFoundError as cause:
            raise BundleError(
                f"{file} is missing; make it first: mbexport int8 {file.parent} --calibration FILE"
            ) from cause
        except DAMAGED as cause:
            raise BundleError(f"{file} is damaged: {cause}; run mbexport int8 again") from cause


def _choice(factor: FloatArray, figures: list[float]) -> Choice:
    strength, limit, covered, error, row_error, by_row = figures
    return Choice(strength, limit, covered, error, row_error, bool(by_row), factor)
