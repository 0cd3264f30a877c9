"""Calibrate, quantize, judge: the stages of ``mbexport int8`` in order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import onnxruntime

from mbexport import manifest as manifests
from mbexport.bundle.stored import StoredWeights
from mbexport.bundle.write import FP32_DATA_FILE
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.disk.temporary import beside
from mbexport.disk.writing import cannot_write, make_folder
from mbexport.errors import BackendError, PrecisionError
from mbexport.files import Progress, put_in_place, to_json, write_atomically
from mbexport.graph.encoder import build_graph
from mbexport.graph.sites import encoder_sites
from mbexport.manifest import Check, Manifest
from mbexport.options import INT8_MAX_LENGTH, QUANTIZED
from mbexport.precision.calibration import Calibration
from mbexport.precision.integer import quantized_sites
from mbexport.precision.strength import choose
from mbexport.quantize.judge import Judge
from mbexport.quantize.observe import observe
from mbexport.quantize.quality import Limits, Quality
from mbexport.quantize.report import GraphReport, QuantizationReport, page, site_reports
from mbexport.quantize.samples import Sample, Samples, bundle_sampler, disjoint, few_note, label_note, split
from mbexport.quantize.search import Sensitivity, fewest_kept, scan
from mbexport.quantize.targets import Source, Target, engine_target, integer_target
from mbexport.quantize.write import CALIBRATION_FILE, Made, data_file, write_graphs
from mbexport.runtime.backends.ort import is_older_than
from mbexport.texts import Example
from mbexport.version import __version__

REFERENCE = "the FP32 graph, on held-out texts"
REPORT = "reports/quality-int8"
SCANNED = 16  # texts that the costs of parts are told from
OLDEST_ONNX_RUNTIME = (1, 24)  # the first that has QuantizeLinear of opset 23, as graphs for TensorRT do


@dataclass(frozen=True)
class Options:
    """How to quantize.

    Attributes:
        limits: what the graphs are held to.
        max_length: tokens that texts are cut to.
        keep: parts that stay in higher precision from the start.
        search: whether to look for parts to keep, where a graph fails.
        fp8: whether to make the FP8 graph, too.
    """

    limits: Limits = field(default_factory=Limits)
    max_length: int = INT8_MAX_LENGTH
    keep: tuple[str, ...] = ()
    search: bool = True
    fp8: bool = False


def _check_onnx_runtime() -> None:
    if is_older_than(OLDEST_ONNX_RUNTIME):
        raise BackendError(
            f"ONNX Runtime is {onnxruntime.__version__}, which cannot compute INT8 graphs for TensorRT (QuantizeLinear "
            "of opset 23), and so not judge them; install onnxruntime>=1.24, which needs Python 3.11"
        )


def quantize(
    bundle: Path,
    calibration: Sequence[Example],
    held_out: Sequence[Example] | None,
    options: Options,
    progress: Progress,
) -> QuantizationReport:
    """Give a bundle its INT8 graphs, each with the verdict of its quality gate.

    Args:
        bundle: a bundle with its FP32 graphs.
        calibration: texts that ranges are taken from.
        held_out: texts that the gate judges by; None for a part of the calibration's.
        options: limits and lengths.
        progress: called as the work goes on.

    Raises:
        BundleError: the bundle is damaged or cannot be written.
        InputError: too few texts, or a part to keep that is none.
        BackendError: ONNX Runtime failed, or is too old for what it is to judge.
    """
    manifest = manifests.read(bundle)
    manifests.check_files(bundle, manifest)
    spec = read_bundle_spec(bundle, manifest)
    quantized_sites(spec, options.keep)  # refuses a part that is none, before any work is done
    first, second = split(calibration, held_out)
    sampler = bundle_sampler(bundle, manifest, options.max_length)
    samples = disjoint(sampler.samples(first), sampler.samples(second))
    steps = _Steps(progress)
    uncalibrated = Source(bundle / "onnx", spec, StoredWeights(bundle, manifest), Calibration("", 0, {}))
    _check_onnx_runtime()
    try:
        make_folder(bundle / "reports")
        with beside(bundle / CALIBRATION_FILE) as file:  # before any work is done: a bundle that cannot be written to
            source = replace(uncalibrated, calibration=_calibrate(manifest, uncalibrated, samples, steps))
            gate = _Gate(manifest, source, samples, options, steps)
            verdicts, notes = _judged(gate, _targets(options), steps, len(samples.held_out))
            write_graphs(bundle, source, [verdict.made(options.limits) for verdict in verdicts])
            source.calibration.save(file)
            put_in_place(file, bundle / CALIBRATION_FILE)
        further = (label_note(manifest, samples.held_out), few_note(manifest, verdicts[0].quality), _stale(bundle))
        report = QuantizationReport(
            passed=not any(verdict.faults for verdict in verdicts),
            graphs=tuple(verdict.report() for verdict in verdicts),
            sites=site_reports(source.calibration),
            ranking=gate.ranking,
            calibration_texts=len(samples.calibration),
            held_out_texts=len(samples.held_out),
            max_length=options.max_length,
            limits=options.limits,
            weight_bytes=(bundle / data_file("int8")).stat().st_size,
            fp32_bytes=sum(weights.bytes for weights in manifest.weights if weights.file == FP32_DATA_FILE),
            notes=(*notes, *filter(None, further)),
        )
        write_atomically(bundle / f"{REPORT}.json", to_json(report.to_dict()) + "\n")
        write_atomically(bundle / f"{REPORT}.html", page(report, manifest.source.name))
    except OSError as cause:
        raise cannot_write(bundle, cause) from cause
    return report


def _judged(gate: _Gate, targets: Sequence[Target], steps: _Steps, texts: int) -> tuple[list[_Verdict], list[str]]:
    """Verdicts of all graphs that can be made, and what is to be said of those that cannot."""
    steps.expect(texts * len(targets))
    verdicts, notes = [], []
    for target in targets:
        try:
            verdicts.append(gate.settle(target))
        except PrecisionError as cause:  # noqa: PERF203 (attention for TensorRT is FP16; CPUs have no such limit)
            notes.append(f"{target.file} is not made: {cause}")
    return verdicts, notes


def _stale(bundle: Path) -> str | None:
    """Engines that new graphs left behind; None where there are none."""
    manifest = manifests.read(bundle)
    earlier = [e.file for e in manifest.engines if e.precision in QUANTIZED and manifest.origin(e) is None]
    if not earlier:
        return None
    return f"{', '.join(earlier)} of the bundle: built from earlier graphs; build again with mbexport trt"


def _targets(options: Options) -> tuple[Target, ...]:
    eight_bits = (integer_target(8), integer_target(7), engine_target("int8"))
    return (*eight_bits, engine_target("fp8")) if options.fp8 else eight_bits


class _Steps:
    """Counts what was done, of a total that grows as more work is found."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._total, self._done = progress, 0, 0

    def expect(self, more: int) -> None:
        self._total += more

    def tick(self, what: str) -> None:
        self._done += 1
        self._progress(self._done, self._total, what)


def _calibrate(manifest: Manifest, source: Source, samples: Samples, steps: _Steps) -> Calibration:
    """Smoothing and ranges of every site."""
    ids, sites = [sample.ids for sample in samples.calibration], encoder_sites(source.spec)
    steps.expect(len(ids) + len(sites))
    observed = observe(source.spec, source.stored.tensors, ids, lambda done, of, what: steps.tick(what))  # noqa: ARG005
    chosen = {}
    for site in sites:
        seen = observed.pop(site.name)
        chosen[site.name] = choose(seen.rows, seen.largest, [source.stored[f"{path}.weight"] for path in site.matrices])
        steps.tick(f"smoothing {site.name}")
    return Calibration(manifest.source.sha256, len(ids), chosen)


@dataclass(frozen=True)
class _Verdict:
    """A graph, the parts that it keeps, and what its gate found."""

    target: Target
    keep: tuple[str, ...]
    quality: Quality
    faults: tuple[str, ...]

    def report(self) -> GraphReport:
        return GraphReport(self.target.file, not self.faults, self.keep, self.quality, self.faults)

    def made(self, limits: Limits) -> Made:
        figures = self.quality.to_dict() | {"limits": asdict(limits)}
        check = Check(f"quality of {self.target.file}", REFERENCE, figures, not self.faults)
        return Made(self.target, self.keep, check)


class _Gate:
    """Judges graphs before they are written, and finds what a failing one has to keep.

    Attributes:
        ranking: what each part costs, the costliest first; empty until a graph has failed.
    """

    def __init__(self, manifest: Manifest, source: Source, samples: Samples, options: Options, steps: _Steps) -> None:
        self._manifest = manifest
        self._source = source
        self._samples = samples
        self._options = options
        self._steps = steps
        self._exact = build_graph(source.spec, source.stored.tensors, "onnxruntime", __version__)
        steps.expect(len(samples.held_out))
        self._judge = self._judge_by(samples.held_out)
        self.ranking: tuple[Sensitivity, ...] = ()

    def _judge_by(self, samples: Sequence[Sample]) -> Judge:
        return Judge(self._manifest, self._source.folder, samples, self._exact, self._steps.tick)

    def settle(self, target: Target) -> _Verdict:
        """The graph with as few parts kept as its gate asks for; one that cannot pass keeps what was asked for."""
        first = self._verdict(target, ())
        if not first.faults or not self._options.search:
            return first
        if not self.ranking:
            self.ranking = self._scan()
        verdicts: dict[int, _Verdict] = {}  # by the number of parts kept

        def passes(parts: Sequence[str]) -> bool:
            self._steps.expect(len(self._samples.held_out))
            verdicts[len(parts)] = self._verdict(target, parts)
            return not verdicts[len(parts)].faults

        kept = fewest_kept(self.ranking, passes)
        if kept is None:
            what = "keeping half of the parts in higher precision is not enough"
            return replace(first, faults=(*first.faults, what))
        return verdicts[len(kept)]

    def _verdict(self, target: Target, parts: Collection[str]) -> _Verdict:
        keep = tuple(sorted({*self._options.keep, *parts}))
        quality = self._judge.quality(target.trial(self._source, keep), Path(target.file).name)
        return _Verdict(target, keep, quality, tuple(quality.faults(self._options.limits)))

    def _scan(self) -> tuple[Sensitivity, ...]:
        """By graphs with one range for all tokens, as TensorRT has them."""
        samples, target = self._samples.calibration[:SCANNED], integer_target(8, by_row=False)
        self._steps.expect(len(samples) * (2 + len(encoder_sites(self._source.spec))))
        judge = self._judge_by(samples)
        return scan(
            self._source.spec,
            lambda keep: judge.quality(target.trial(self._source, keep), "what each part costs").error,
        )
