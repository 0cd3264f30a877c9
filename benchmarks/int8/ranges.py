"""How the range of a site's codes is chosen: the largest value, percentiles, entropy, and what mbexport does."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime.quantization.calibrate import HistogramCollector

from benchmarks.int8.quality import Say
from benchmarks.int8.sets import TextSet, prepare
from mbexport.bundle.stored import StoredWeights
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.files import no_progress
from mbexport.graph.encoder import build_graph
from mbexport.graph.sites import encoder_sites
from mbexport.precision.calibration import Calibration
from mbexport.precision.strength import Choice, choose
from mbexport.quantize.judge import Judge
from mbexport.quantize.observe import Observed, observe
from mbexport.quantize.targets import Source, Target, engine_target, integer_target
from mbexport.version import __version__

FloatArray = npt.NDArray[np.float32]
JUDGED = 300  # texts, at most
BINS, LEVELS = 1025, 128  # of a histogram, and of the codes that entropy is told for, as TensorRT counts them
PERCENTILES = (0.99999, 0.9999, 0.999)
OURS, EVERY_ROW = "mbexport", "a range for each token, everywhere"


def ranges(given: TextSet, work: Path, say: Say) -> dict[str, Any]:
    """Error and agreement by way of choosing, of TensorRT's graph and of the one for CPUs.

    Smoothing is mbexport's own in all of them but the first, which has none.

    Args:
        given: a checkpoint and its texts.
        work: a folder for what is made; removed first, and afterwards.
        say: told what is done.
    """
    shutil.rmtree(work, ignore_errors=True)
    say(f"{given.name}: watching")
    prepared = prepare(given, work, twin=False)
    spec, stored = (
        read_bundle_spec(prepared.bundle, prepared.manifest),
        StoredWeights(prepared.bundle, prepared.manifest),
    )
    observed = observe(spec, stored.tensors, [sample.ids for sample in prepared.samples], no_progress)
    ours = {
        site.name: choose(*_seen(observed[site.name]), [stored[f"{matrix}.weight"] for matrix in site.matrices])
        for site in encoder_sites(spec)
    }
    judging = prepared.judging[:: -(-len(prepared.judging) // JUDGED)]
    exact = build_graph(spec, stored.tensors, "onnxruntime", __version__)
    judge = Judge(prepared.manifest, prepared.bundle / "onnx", judging, exact, lambda _what: None)
    found: dict[str, dict[str, Any]] = {}
    for name, sites in ways(observed, ours).items():
        source = Source(prepared.bundle / "onnx", spec, stored, Calibration("", len(prepared.samples), sites))
        found[name] = {}
        for graph, target in _targets(name).items():
            say(f"  {name}, {graph}")
            measured = judge.quality(target.trial(source, ()), graph)
            found[name][graph] = {"error": measured.error, "agreement": measured.agreement}
    shutil.rmtree(work, ignore_errors=True)
    by_row = sum(choice.by_row for choice in ours.values())
    return {"name": given.name, "texts": len(judging), "sites": len(ours), "sites_by_row": by_row, "figures": found}


def _targets(way: str) -> dict[str, Target]:
    """The graphs that a way says something of: those of TensorRT have one range for all tokens."""
    cpu = {"CPU": integer_target(8)}
    return cpu if way == EVERY_ROW else {"TensorRT": engine_target("int8")} | cpu


def ways(observed: Mapping[str, Observed], ours: Mapping[str, Choice]) -> dict[str, dict[str, Choice]]:
    """Choices of all sites, by the name of the way."""

    def each(change: Callable[[FloatArray, FloatArray, Choice], Choice]) -> dict[str, Choice]:
        """Of each site: sampled values and largest of each channel, both smoothed, and our choice."""
        return {
            name: change(observed[name].rows / choice.factor, observed[name].largest / choice.factor, choice)
            for name, choice in ours.items()
        }

    def one_range(choice: Choice, limit: float) -> Choice:
        return dataclasses.replace(choice, range=limit or 1.0, by_row=False)

    def unsmoothed(_rows: FloatArray, largest: FloatArray, choice: Choice) -> Choice:
        raw = float((largest * choice.factor).max())
        return one_range(dataclasses.replace(choice, factor=np.ones_like(choice.factor)), raw)

    def covering(share: float, rows: FloatArray, _largest: FloatArray, choice: Choice) -> Choice:
        return one_range(choice, float(np.quantile(np.abs(rows), share)))

    found = {
        "largest value, without smoothing": each(unsmoothed),
        "largest value": each(lambda _rows, largest, choice: one_range(choice, float(largest.max()))),
        "entropy": each(lambda rows, _largest, choice: one_range(choice, entropy(rows))),
    }
    for share in PERCENTILES:
        found[f"{100 * share:g} % of the values"] = each(partial(covering, share))
    found[OURS] = dict(ours)
    found[EVERY_ROW] = {name: dataclasses.replace(choice, by_row=True) for name, choice in ours.items()}
    return found


def entropy(values: FloatArray) -> float:
    """The range by least divergence of the histograms, as ONNX Runtime's entropy calibration finds it."""
    most = float(np.abs(values).max()) or 1.0
    counts, edges = np.histogram(values, bins=BINS, range=(-most, most))
    collector = HistogramCollector("entropy", True, BINS, LEVELS, None, "same")
    low, high = collector.get_entropy_threshold((counts, edges, edges[0], edges[-1]), LEVELS)[:2]
    return max(abs(float(low)), abs(float(high)))


def _seen(observed: Observed) -> tuple[FloatArray, FloatArray]:
    return observed.rows, observed.largest
