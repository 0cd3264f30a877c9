"""What a model's products read on real texts: the largest of each channel, and a sample of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mbexport.checkpoint.spec import ModelSpec
from mbexport.errors import PrecisionError
from mbexport.files import Progress
from mbexport.graph.encoder import build_graph
from mbexport.graph.products import ObservedProducts
from mbexport.graph.sites import encoder_sites
from mbexport.parity.graphs.memory import MemoryGraph
from mbexport.version import __version__

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
SAMPLED = 1024  # tokens whose values are kept, of each site
FIRSTS = 4  # every so many texts the first token is kept, which some models pool and others make large


@dataclass(frozen=True)
class Observed:
    """Of one site: the largest magnitude of each channel, [in], and the values of some tokens, [n, in]."""

    largest: FloatArray
    rows: FloatArray


def observe(
    spec: ModelSpec, weights: dict[str, ir.ExternalTensor], ids: Sequence[IntArray], progress: Progress
) -> dict[str, Observed]:
    """Run texts through the model and watch what enters its products.

    Args:
        spec: the model.
        weights: its float32 tensors, where they lie.
        ids: token ids of each text; at least one.
        progress: called after each text.

    Returns:
        By name of the site.

    Raises:
        BackendError: ONNX Runtime failed, e.g. out of memory.
        PrecisionError: a value overflows in float32.
    """
    model = build_graph(spec, weights, "onnxruntime", __version__, products=ObservedProducts)
    session = MemoryGraph(model, Path(next(iter(weights.values())).base_dir))
    names = [site.name for site in encoder_sites(spec)]
    largest: dict[str, FloatArray] = {}
    rows: dict[str, list[FloatArray]] = {name: [] for name in names}
    rng = np.random.default_rng(0)
    for number, text in enumerate(ids):
        places = rng.choice(len(text), min(-(-SAMPLED // len(ids)), len(text)), replace=False)
        places = np.union1d(places, [0]) if number % FIRSTS == 0 else places
        values = session.run(text[None], np.ones_like(text[None]), wanted=names)
        for name, value in zip(names, values, strict=True):
            found = np.abs(value[0]).max(axis=0)
            if not np.isfinite(found).all():
                raise PrecisionError(
                    f"what enters {name} is NaN or infinite on calibration text {number}, in float32 itself; "
                    "look for weights that are not what they were, or for what the text has that others have not"
                )
            largest[name] = np.maximum(largest[name], found) if name in largest else found
            rows[name].append(value[0, places])
        progress(number + 1, len(ids), "watching")
    return {name: Observed(largest[name], np.concatenate(rows[name])) for name in names}
