"""A base-size bundle with random weights and its INT8 graphs, for speed; made once and kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.int8.quality import Say
from benchmarks.peers import base_checkpoint
from mbexport import export_onnx
from mbexport import manifest as manifests
from mbexport.bench.workloads import HIGHEST_ID, LOWEST_ID
from mbexport.files import no_progress
from mbexport.quantize.run import Options, quantize
from mbexport.runtime.text import bundle_encoder
from mbexport.texts import Example

IntArray = npt.NDArray[np.int64]
CHECKPOINT = Path("build/base")
CALIBRATION, HELD_OUT, LENGTH = 48, 8, 128  # texts, and their tokens


def random_ids(count: int, seed: int) -> list[IntArray]:
    """Texts of the kind that is measured."""
    return list(np.random.default_rng(seed).integers(LOWEST_ID, HIGHEST_ID, (count, LENGTH), dtype=np.int64))


def base_bundle(work: Path, say: Say) -> Path:
    """The bundle; ``work / "base"``."""
    bundle, done = work / "base", work / "base.done"
    if done.exists():
        return bundle
    say("base size: export, mbexport int8")
    shutil.rmtree(bundle, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    export_onnx(base_checkpoint(CHECKPOINT), bundle)
    encoder = bundle_encoder(bundle, manifests.read(bundle))
    calibration, held_out = (
        [Example("".join(map(encoder.decode, ids.tolist()))) for ids in random_ids(count, seed)]
        for seed, count in enumerate((CALIBRATION, HELD_OUT))
    )
    quantize(bundle, calibration, held_out, Options(max_length=LENGTH, search=False), no_progress)
    done.touch()
    return bundle
