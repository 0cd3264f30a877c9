"""The weights of quantized graphs: one file for all of a kind, equal tensors stored once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256 as hash_of
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mbexport.bundle.place import Written
from mbexport.bundle.weights import ALIGNMENT, Place, append
from mbexport.disk.temporary import beside
from mbexport.disk.writing import HashedFile
from mbexport.manifest import WeightsFile

Tensors = Mapping[str, npt.NDArray[Any]]
SMALL, SMALL_ALIGNMENT = 2**16, 64  # bytes: a page for each of many scales would be much of a small model


@contextmanager
def written(bundle: Path, data_file: str, graphs: Sequence[Tensors]) -> Iterator[Written]:
    """Write the tensors of some graphs to a file beside ``data_file``; gone when the block ends, unless placed.

    Args:
        bundle: the bundle.
        data_file: relative to it.
        graphs: the tensors of each by name; what is equal is stored once.

    Raises:
        OSError: the file cannot be written.
    """
    with beside(bundle / data_file) as temporary:
        known: dict[tuple[bytes, str, tuple[int, ...]], Place] = {}
        places: list[dict[str, Place]] = []
        with HashedFile(temporary) as file:
            for tensors in graphs:
                places.append({})
                for name, array in tensors.items():
                    content = np.ascontiguousarray(array).reshape(array.shape)  # which makes scalars vectors
                    key = (hash_of(content.reshape(-1).view(np.uint8).data).digest(), str(array.dtype), array.shape)
                    if key not in known:
                        known[key] = append(file, content, ALIGNMENT if content.nbytes > SMALL else SMALL_ALIGNMENT)
                    places[-1][name] = known[key]
            entry = WeightsFile(data_file, file.bytes, file.sha256())
        yield Written(temporary, entry, tuple(places))
