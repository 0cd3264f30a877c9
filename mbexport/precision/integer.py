"""The tensors of an INT8 graph for ONNX Runtime: codes where products are quantized, the rest as it was."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mbexport.checkpoint.spec import ModelSpec
from mbexport.checkpoint.weights import EMBEDDINGS
from mbexport.errors import InputError
from mbexport.graph.layers import EMBEDDING_SCALES
from mbexport.graph.rope import split_tables
from mbexport.graph.sites import Site, encoder_sites, within
from mbexport.precision.calibration import Calibration
from mbexport.precision.codes import MOST, to_codes
from mbexport.precision.smooth import SmoothedTensors, Tensors

EMBEDDINGS_PART = "embeddings"
Named = tuple[str, npt.NDArray[Any] | None]


def quantized_sites(spec: ModelSpec, keep: Collection[str]) -> list[Site]:
    """The sites that are not within a part that is kept.

    Args:
        spec: the model.
        keep: ``embeddings``, or what names of sites start with: ``layers.N``, ``layers.N.mlp``,
            ``layers.N.mlp.gated``.

    Raises:
        InputError: a name in ``keep`` is no part of the model.
    """
    sites = encoder_sites(spec)
    for part in keep:
        if part != EMBEDDINGS_PART and ("." not in part or not any(within(site.name, part) for site in sites)):
            raise InputError(
                f"{part!r} is no part that can be kept, expected embeddings, layers.N, layers.N.attn, layers.N.mlp "
                f"or a site, e.g. layers.N.mlp.gated, with N from 0 to {spec.num_layers - 1}"
            )
    left = [site for site in sites if not any(within(site.name, part) for part in keep)]
    if not left and EMBEDDINGS_PART in keep:
        raise InputError(f"{', '.join(keep)} are to be kept, and nothing is left to quantize; keep fewer parts")
    return left


def smoothed(spec: ModelSpec, tensors: Tensors, calibration: Calibration, keep: Collection[str]) -> SmoothedTensors:
    """The model's tensors, smoothed at the sites that are quantized."""
    factors = {site.name: calibration.sites[site.name].factor for site in quantized_sites(spec, keep)}
    return SmoothedTensors(spec, tensors, factors)


def integer_tensors(
    spec: ModelSpec, tensors: Tensors, calibration: Calibration, keep: Collection[str] = ()
) -> Iterator[Named]:
    """Name and values of all tensors of an INT8 graph; None where they are the model's own, unchanged.

    Args:
        spec: the model.
        tensors: its float32 tensors by name, matrices [in, out].
        calibration: smoothing and ranges.
        keep: parts that stay float32, as :func:`quantized_sites` takes them.
    """
    for kind, used in (("global", spec.has_global), ("local", spec.has_local)):
        if used:
            parts = split_tables(tensors[f"rope.{kind}.cos"], tensors[f"rope.{kind}.sin"])
            yield from ((f"rope.{kind}.{name}", part) for name, part in parts.items())
    result = smoothed(spec, tensors, calibration, keep)
    coded = {f"{matrix}.weight" for site in quantized_sites(spec, keep) for matrix in site.matrices}
    for name in result:
        if name.startswith("rope."):
            continue
        if name in coded:
            codes, scale = to_codes(result[name])
            yield name, codes
            yield f"{name}_scale", scale
        elif name == EMBEDDINGS and EMBEDDINGS_PART not in keep:
            codes, scale = to_codes(result[name].T)  # a scale for each row
            yield name, np.ascontiguousarray(codes.T)
            yield EMBEDDING_SCALES, scale
        else:
            yield name, result[name] if result.changes(name) else None


def steps(
    spec: ModelSpec, calibration: Calibration, keep: Collection[str], *, by_row: bool = True
) -> dict[str, npt.NDArray[np.float32]]:
    """What a code of 8 bits counts at the sites that have one range for all tokens, by name of the tensor.

    Args:
        spec: the model.
        calibration: ranges.
        keep: parts that stay float32.
        by_row: whether the graph has ranges for each token, where they are worth it.
    """
    chosen = {site.name: calibration.sites[site.name] for site in quantized_sites(spec, keep)}
    return {
        f"{name}.step": np.array(choice.range / MOST, np.float32)
        for name, choice in chosen.items()
        if not (by_row and choice.by_row)
    }
