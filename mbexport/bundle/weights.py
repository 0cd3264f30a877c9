"""Weights stream from a checkpoint into one external-data file that all graphs share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mbexport.checkpoint.spec import ModelSpec
from mbexport.checkpoint.weights import Weights, expected_tensors, is_linear
from mbexport.disk.writing import HashedFile
from mbexport.files import Progress
from mbexport.graph.rope import rope_tables
from mbexport.manifest import WeightsFile

# Projections that a checkpoint stores as one matrix, by rows. Multiplied apart, they need no split of the product.
SEPARATED = {"Wqkv": ("Wq", "Wk", "Wv"), "Wi": ("Wi_input", "Wi_gate")}
ALIGNMENT = 4096  # a page, so that a runtime can map each tensor as it lies


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the weights file: first byte, bytes, shape, element type."""

    offset: int
    length: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


FloatArray = npt.NDArray[np.float32]


def write_fp32_weights(
    path: Path, spec: ModelSpec, weights: Weights, progress: Progress
) -> tuple[dict[str, Place], WeightsFile]:
    """Write every tensor as float32, little endian, linear weights transposed to [in, out].

    Args:
        path: the file to write; graphs will name it relative to their own place.
        spec: the model.
        weights: its tensors.
        progress: called after each tensor.

    Returns:
        Where each tensor lies, by name; and the manifest's entry for the file.

    Raises:
        CheckpointError: a tensor or a rotary angle is NaN or infinity.
        OSError: the file cannot be written.
    """
    placed: dict[str, Place] = {}
    expected = expected_tensors(spec)
    total = sum(len(_part_names(name)) for name in expected) + 2 * (spec.has_global + spec.has_local)
    with HashedFile(path) as file:
        for name, array in _all_tensors(spec, weights):
            placed[name] = append(file, np.asarray(array, dtype="<f4"))
            progress(len(placed), total, name)
        return placed, WeightsFile(f"{path.parent.name}/{path.name}", file.bytes, file.sha256())


def append(file: HashedFile, array: npt.NDArray[Any], alignment: int = ALIGNMENT) -> Place:
    """Write a tensor behind what is there, little endian as it is, aligned."""
    file.write(bytes(-file.bytes % alignment))
    start = file.bytes
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return Place(start, file.bytes - start, array.shape, array.dtype)


def _all_tensors(spec: ModelSpec, weights: Weights) -> Iterator[tuple[str, FloatArray]]:
    for name, array in weights.read(list(expected_tensors(spec))):
        parts = _part_names(name)
        for part, values in zip(parts, np.split(array, len(parts)), strict=True):
            yield part, values.T if is_linear(name, array.shape) else values
    for kind, used, rope in (
        ("global", spec.has_global, spec.global_rope),
        ("local", spec.has_local, spec.local_rope),
    ):
        if used:
            cos, sin = rope_tables(rope, spec.head_dim, spec.max_positions)
            yield f"rope.{kind}.cos", cos
            yield f"rope.{kind}.sin", sin


def stored_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that a weights file holds for a model, as they lie there, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (rows, *columns) in expected_tensors(spec).items():
        parts = _part_names(name)
        part = (rows // len(parts), *columns)
        shapes |= dict.fromkeys(parts, part[::-1] if is_linear(name, part) else part)
    for kind, used in (("global", spec.has_global), ("local", spec.has_local)):
        if used:
            shapes |= dict.fromkeys((f"rope.{kind}.cos", f"rope.{kind}.sin"), (spec.max_positions, spec.head_dim // 2))
    return shapes


def _part_names(name: str) -> list[str]:
    """The tensors that one of a checkpoint becomes: the joined projections come apart, by SEPARATED."""
    path, _, kind = name.rpartition(".")
    module, _, joined = path.rpartition(".")
    return [f"{module}.{part}.{kind}" for part in SEPARATED[joined]] if joined in SEPARATED else [name]
