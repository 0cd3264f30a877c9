"""The main path, stage by stage: checkpoint -> graphs and weights -> bundle -> INT8 -> engines -> proof -> server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mbexport.disk.claims import claimed
from mbexport.errors import BundleError, InputError
from mbexport.files import Progress, no_progress
from mbexport.manifest import Manifest
from mbexport.optional import require
from mbexport.options import DEFAULT_BUNDLE, DEFAULT_MAX_LENGTH, DEFAULT_REPOSITORY, INT8_MAX_LENGTH, PACKAGE_NAME
from mbexport.texts import Example, Text, read_examples

if TYPE_CHECKING:
    from mbexport.engines.report import EngineReport
    from mbexport.packaging.run import PackageReport
    from mbexport.parity.report import ParityReport
    from mbexport.quantize.quality import Limits
    from mbexport.quantize.report import QuantizationReport

PathLike = str | os.PathLike[str]


def export_onnx(
    checkpoint: PathLike,
    bundle: PathLike = DEFAULT_BUNDLE,
    *,
    base: PathLike | None = None,
    packed: bool = False,
    force: bool = False,
    progress: Progress = no_progress,
) -> Manifest:
    """Export a ModernBERT checkpoint to a bundle of ONNX graphs.

    Args:
        checkpoint: a directory saved by ``save_pretrained``; of a model, or a LoRA adapter.
        bundle: the directory to write.
        base: an adapter's base model; None takes the one that the adapter names.
        packed: write the graph whose rows hold several texts, too, which ONNX Runtime runs on a GPU.
        force: replace the bundle that is there.
        progress: called after each tensor that was written.

    Returns:
        The bundle's manifest; its ``notes`` name every guess that was taken.

    Raises:
        CheckpointError: the checkpoint is damaged or not supported.
        InputError: ``packed``, and the model has no such graph.
        BundleError: the bundle's place is taken or cannot be written.
        MissingExtraError: the extra ``export`` is not installed.
    """
    require("onnx_ir", "safetensors", "ml_dtypes")
    from mbexport.bundle.write import write_bundle
    from mbexport.checkpoint.load import load_checkpoint
    from mbexport.disk.writing import check_target

    target = Path(bundle)
    check_target(target, force=force)  # before any work is done
    for source in (Path(checkpoint), _path(base)):
        if source is not None and target.resolve() in (source.resolve(), *source.resolve().parents):
            raise BundleError(f"{source} lies inside {target}, which would be replaced; choose another place with -o")
    loaded = load_checkpoint(Path(checkpoint), _path(base))
    return write_bundle(loaded, target, packed=packed, force=force, progress=progress)


def validate(  # noqa: PLR0913 (one parameter an option)
    bundle: PathLike = DEFAULT_BUNDLE,
    *,
    checkpoint: PathLike | None = None,
    against: PathLike | None = None,
    base: PathLike | None = None,
    reference: str = "auto",
    texts: Sequence[Text] | None = None,
    max_length: int = DEFAULT_MAX_LENGTH,
    bisect: bool = False,
    report: PathLike | None = None,
    progress: Progress = no_progress,
) -> ParityReport:
    """Compare graphs with the PyTorch model they were exported from, or with another graph.

    Args:
        bundle: a bundle, an ONNX file, or a directory that another exporter wrote. The result of a bundle
            against its checkpoint is recorded in its manifest and its ``reports/``.
        checkpoint: the checkpoint that it came from; this or ``against``.
        against: another bundle, ONNX file or directory, whose most exact graph is the reference.
        base: an adapter's base model; None takes the one that the adapter names.
        reference: ``auto``, ``flash_attention_2``, ``sdpa`` or ``eager``; PyTorch's attention.
        texts: what to compare on; None for the set that mbexport brings.
        max_length: no inputs longer than this; PyTorch's memory grows with its square.
        bisect: look into every graph layer by layer, not only a bundle's FP16 ones and those that fail; into
            quantized ones, too.
        report: a directory that gets the report, as JSON and as an HTML page.
        progress: called after each forward pass.

    Returns:
        The report; ``passed`` is the verdict.

    Raises:
        CheckpointError: the checkpoint is damaged or not supported.
        BundleError: the bundle is damaged.
        InputError: other weights, another model, no graph that can be compared, or a reference that cannot run here.
        BackendError: ONNX Runtime refuses a graph.
        MissingExtraError: the extra ``validate`` is not installed (``export`` is enough for ``against``).
    """
    _check_reference(bundle, checkpoint, against, base, reference)
    needed = ("torch", "transformers") if checkpoint is not None else ()
    require(*needed, "onnx_ir", "safetensors", "ml_dtypes")
    from mbexport.checkpoint.load import load_checkpoint
    from mbexport.parity.page import facts_of
    from mbexport.parity.record import write_report
    from mbexport.parity.run import Options, run_validation

    if report is not None:
        Path(report).mkdir(parents=True, exist_ok=True)  # before any work is done
    origin = Path(against) if against is not None else load_checkpoint(Path(checkpoint or ""), _path(base))
    options = Options(reference, texts, max_length, bisect)
    with claimed(Path(bundle), progress, shared=True):
        result = run_validation(Path(bundle), origin, options, progress)
    if report is not None:
        write_report(Path(report), result, facts_of(Path(bundle)))
    return result


def quantize_int8(
    bundle: PathLike = DEFAULT_BUNDLE,
    *,
    calibration: PathLike | Sequence[Text | Example],
    held_out: PathLike | Sequence[Text | Example] | None = None,
    limits: Limits | None = None,
    max_length: int = INT8_MAX_LENGTH,
    keep: Sequence[str] = (),
    fp8: bool = False,
    progress: Progress = no_progress,
) -> QuantizationReport:
    """Give a bundle calibrated INT8 graphs, each behind a quality gate.

    Args:
        bundle: the bundle; graphs, reports and manifest entries are added to it.
        calibration: texts, or a file of them; a few hundred of the kind that the model will read.
        held_out: texts to judge by, or a file of them; None holds out half of the calibration's. With
            labels, macro-F1 is judged, too.
        limits: what the graphs are held to against the FP32 graph; None for the usual.
        max_length: texts are cut to so many tokens.
        keep: parts that stay in FP32 from the start: ``embeddings``, ``layers.N``, ``layers.N.attn``,
            ``layers.N.mlp``, or a site such as ``layers.N.mlp.gated``.
        fp8: make and judge the FP8 graph for TensorRT, too.
        progress: called as the work goes on.

    Returns:
        The report; ``passed`` is the verdict over all graphs. A graph that fails is searched for the parts
        that hurt most; one that fails for all that is in the bundle, marked, and never taken by itself.

    Raises:
        BundleError: the bundle is damaged or cannot be written.
        InputError: too few texts, a file that is none, or a part to keep that is none.
        BackendError: ONNX Runtime failed.
        MissingExtraError: the extra ``export`` is not installed.
    """
    require("onnx_ir", "safetensors", "ml_dtypes")
    from mbexport.quantize.quality import Limits as Held
    from mbexport.quantize.run import Options, quantize

    if type(max_length) is not int or max_length < 1:
        raise InputError(f"max_length is {max_length!r}, expected a whole number from 1")
    options = Options(limits or Held(), max_length, tuple(keep), fp8=fp8)
    judging = None if held_out is None else _examples(held_out)
    examples = _examples(calibration)
    with claimed(Path(bundle), progress):
        return quantize(Path(bundle), examples, judging, options, progress)


def build_engine(  # noqa: PLR0913 (one parameter an option)
    bundle: PathLike = DEFAULT_BUNDLE,
    *,
    gpu: str | Sequence[str],
    precision: str = "fp16",
    builder: str = "auto",
    profiles: Sequence[str] | None = None,
    workspace: int | None = None,
    keep_fp32: Sequence[str] = (),
    packed: bool = False,
    progress: Progress = no_progress,
) -> tuple[EngineReport, ...]:
    """Build a bundle's TensorRT engines, one for each GPU.

    Args:
        bundle: the bundle; engines, their reports and manifest entries are added to it.
        gpu: names of GPUs, e.g. ``t4``; ``auto`` for this machine's.
        precision: ``fp16``, ``bf16``, ``fp32``, or, once :func:`quantize_int8` has run, ``int8`` or ``fp8``.
        builder: ``tensorrt-rtx`` (ahead of time, anywhere), ``tensorrt`` (on the GPU itself) or ``auto``.
        profiles: optimization profiles, e.g. ``1x1:8x512:32x8192``; None for each GPU's default.
        workspace: MiB of scratch memory that a kernel may take; None for the builder's default.
        keep_fp32: parts of the model whose products stay in FP32, e.g. ``layers.0``.
        packed: rows hold several texts, so that a batch of mixed lengths has next to no padding.
        progress: called as the builders go on.

    Returns:
        A report for each engine, in the order of ``gpu``. An ``EarlierGraphWarning`` names engines of the
        bundle that another choice of ``keep_fp32`` left behind: the graph they were built from is gone.

    Raises:
        InputError: an unknown GPU, a builder that cannot build for it here, a precision that it has not
            got, a profile that cannot be, or a part in FP32 that is none; before anything is built.
        EngineError: the builder failed; engines that were finished before stand.
        BundleError: the bundle is damaged or cannot be written.
        PrecisionError: FP16 cannot hold the model.
        MissingExtraError: the extra ``trt`` or ``tensorrt`` is not installed.
    """
    from mbexport.engines.build import Options, build_engines
    from mbexport.engines.builders import choose_targets

    targets = choose_targets((gpu,) if isinstance(gpu, str) else gpu, builder, precision)
    options = Options(precision, tuple(keep_fp32), profiles, workspace, packed)
    with claimed(Path(bundle), progress):
        if precision == "fp8":
            from mbexport.quantize.write import ensure_fp8_graph

            ensure_fp8_graph(Path(bundle))
        return build_engines(Path(bundle), targets, options, progress)


def package(  # noqa: PLR0913 (one parameter an option)
    bundle: PathLike = DEFAULT_BUNDLE,
    output: PathLike = DEFAULT_REPOSITORY,
    *,
    format: str = "triton",
    name: str = PACKAGE_NAME,
    device: str = "cpu",
    precision: str = "fp32",
    engine: str | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> PackageReport:
    """Lay a bundle out for a server: Triton Inference Server's model repository.

    Args:
        bundle: the bundle; it is only read.
        output: the directory to write.
        format: ``triton``.
        name: of the model that takes texts; ``<name>_model`` takes token ids.
        device: ``cpu`` or ``gpu``, where ONNX Runtime computes.
        precision: ``fp32``, or on the CPU ``int8``: of its graphs the one that every CPU computes exactly.
        engine: an engine of the bundle, built by TensorRT, in the place of ONNX Runtime; it needs its GPU.
        force: replace the repository that is there.
        progress: called after each file that was copied.

    Returns:
        What was written. A QualityWarning tells of a graph or engine that no quality gate let pass.

    Raises:
        InputError: a choice that there is not, or an engine that Triton cannot run.
        BundleError: the bundle is damaged or has no such graph, or the place is taken or cannot be written.
        BackendError: ONNX Runtime cannot run the graph.
    """
    from mbexport.packaging.run import Options
    from mbexport.packaging.run import package as write

    options = Options(format, name, device, precision, engine)
    with claimed(Path(bundle), progress, shared=True):
        return write(Path(bundle), Path(output), options, force=force, progress=progress)


def _check_reference(
    bundle: PathLike, checkpoint: PathLike | None, against: PathLike | None, base: PathLike | None, reference: str
) -> None:
    """Refuse choices that do not go together."""
    if (checkpoint is None) == (against is None):
        found = "neither of them is" if checkpoint is None else "both of them are"
        raise InputError(f"{bundle} is compared with one of --checkpoint and --against; {found} given")
    if checkpoint is None and base is not None:
        raise InputError("--base is the base model of a --checkpoint that is an adapter; leave it out with --against")
    if checkpoint is None and reference != "auto":
        raise InputError(f"--reference {reference} is a way to run a --checkpoint; leave it out with --against")


def _examples(given: PathLike | Sequence[Text | Example]) -> list[Example]:
    """Texts as they are, or those of a file; pairs that are lists as tuples."""
    if isinstance(given, (str, os.PathLike)):
        return read_examples(Path(given))
    examples = []
    for number, item in enumerate(given):
        example = item if isinstance(item, Example) else Example(tuple(item) if isinstance(item, list) else item)
        parts = example.text if isinstance(example.text, tuple) and len(example.text) == 2 else (example.text,)
        if not all(isinstance(part, str) for part in parts) or not isinstance(example.label, (str, type(None))):
            raise InputError(
                f"item {number} is {item!r:.80}, expected a text, a pair of texts, or an Example with a label that "
                "is a text"
            )
        examples.append(example)
    return examples


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)
