"""Commands that make something: bundles, INT8 graphs, engines, packed weights, model repositories."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mbexport.cli.console import FAILED, common_options, facts, note, noted_warnings, printable_lines, progress_bar
from mbexport.cli.parameters import BASE, DIRECTORY
from mbexport.cli.show import engine_text, package_text, quality_text
from mbexport.files import to_json
from mbexport.options import (
    BUILDERS,
    DEFAULT_BUNDLE,
    DEFAULT_REPOSITORY,
    ENGINE_PRECISIONS,
    INT8_MAX_LENGTH,
    MAX_F1_DROP,
    MIN_AGREEMENT,
    MIN_SIMILARITY,
    PACKAGE_DEVICES,
    PACKAGE_FORMATS,
    PACKAGE_NAME,
    PACKAGE_PRECISIONS,
    RUNTIME_PRECISIONS,
)


@click.command()
@click.argument("checkpoint", type=DIRECTORY)
@click.option(
    "-o", "--output", "bundle", type=DIRECTORY, default=DEFAULT_BUNDLE, show_default=True, help="Bundle to write."
)
@BASE
@click.option("--packed", is_flag=True, help="Write the graph whose rows hold several texts, too (GPUs).")
@click.option("--force", is_flag=True, help="Replace the bundle that is there.")
@common_options
def onnx(checkpoint: Path, bundle: Path, base: Path | None, packed: bool, force: bool, quiet: bool) -> None:
    """Export CHECKPOINT, a model or LoRA adapter saved by save_pretrained, to a bundle of ONNX graphs."""
    from mbexport.pipeline import export_onnx

    with progress_bar("Writing weights", quiet=quiet) as progress:
        manifest = export_onnx(checkpoint, bundle, base=base, packed=packed, force=force, progress=progress)
    for message in manifest.notes:
        note(message, quiet=quiet)
    rows = [("bundle", str(bundle)), ("task", manifest.task)]
    rows += [("graph", f"{graph.file}: {_size(bundle / graph.file)}, {graph.dialect}") for graph in manifest.graphs]
    rows += [("weights", f"{item.file}: {_size(bundle / item.file)}") for item in manifest.weights]
    click.echo(facts(rows))


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


@click.command()
@click.argument("bundle", type=DIRECTORY, default=DEFAULT_BUNDLE)
@click.option(
    "--calibration", type=DIRECTORY, required=True,
    help="Texts of the kind that the model will read (.txt, .jsonl, .json or .csv); a few hundred are enough.",
)  # fmt: skip
@click.option(
    "--held-out", type=DIRECTORY,
    help="Texts to judge by, perhaps with labels; default: half of those of --calibration, which then calibrate not.",
)  # fmt: skip
@click.option(
    "--min-agreement", type=click.FloatRange(0, 100), default=MIN_AGREEMENT, show_default=True,
    help="Percent of predictions that must be those of the FP32 graph.",
)  # fmt: skip
@click.option(
    "--max-f1-drop", type=click.FloatRange(0, 100), default=MAX_F1_DROP, show_default=True,
    help="Points of macro-F1 that may be lost, where texts have labels.",
)  # fmt: skip
@click.option(
    "--min-similarity", type=click.FloatRange(0, 1), default=MIN_SIMILARITY, show_default=True,
    help="Least mean cosine of embeddings, or coefficient of determination of scores.",
)  # fmt: skip
@click.option(
    "--max-length", type=click.IntRange(min=1), default=INT8_MAX_LENGTH, show_default=True,
    help="Tokens that texts are cut to.",
)  # fmt: skip
@click.option(
    "--keep", multiple=True, metavar="PART",
    help="A part that stays in FP32: embeddings, layers.N, layers.N.mlp, layers.N.mlp.gated, ... "
    "May be given several times.",
)  # fmt: skip
@click.option("--fp8", is_flag=True, help="Make and judge the FP8 graph for TensorRT (Ada, Hopper and later), too.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@common_options
def int8(  # noqa: PLR0913 (one parameter an option)
    bundle: Path, calibration: Path, held_out: Path | None, min_agreement: float, max_f1_drop: float,
    min_similarity: float, max_length: int, keep: tuple[str, ...], fp8: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Add calibrated INT8 graphs to BUNDLE; exit code 1 if one of them fails its quality gate."""
    from mbexport.pipeline import quantize_int8
    from mbexport.quantize.quality import Limits

    limits = Limits(min_agreement, max_f1_drop, min_similarity)
    with progress_bar("Quantizing", quiet=quiet) as progress:
        report = quantize_int8(
            bundle, calibration=calibration, held_out=held_out, limits=limits, max_length=max_length,
            keep=keep, fp8=fp8, progress=progress,
        )  # fmt: skip
    for message in report.notes:
        note(message, quiet=quiet)
    click.echo(to_json(report.to_dict()) if as_json else printable_lines(quality_text(report)))
    sys.exit(0 if report.passed else FAILED)


@click.command()
@click.argument("bundle", type=DIRECTORY, default=DEFAULT_BUNDLE)
@click.option(
    "--gpu", "gpus", multiple=True, required=True, metavar="NAME",
    help="The GPU to build for: t4, a100, rtx4090, ..., or auto for this machine's. May be given several times.",
)  # fmt: skip
@click.option("--precision", type=click.Choice(ENGINE_PRECISIONS), default="fp16", show_default=True)
@click.option(
    "--builder", type=click.Choice(BUILDERS), default="auto", show_default=True,
    help="TensorRT-RTX builds for any GPU on any machine; TensorRT on the GPU itself, which auto prefers there.",
)  # fmt: skip
@click.option(
    "--profile", "profiles", multiple=True, metavar="BxL:BxL:BxL",
    help="Texts x tokens: smallest, fastest, largest, e.g. 1x1:8x512:32x8192. May be given several times; "
    "default: one for a single text and one for many, as the GPU's memory allows.",
)  # fmt: skip
@click.option("--workspace", type=click.IntRange(min=1), metavar="MIB", help="Most scratch memory of a kernel.")
@click.option(
    "--keep-fp32", multiple=True, metavar="PART",
    help="A part that stays in FP32: embeddings, head, layers.N, layers.N.attn or layers.N.mlp, with N from 0. "
    "May be given several times.",
)  # fmt: skip
@click.option("--packed", is_flag=True, help="Rows hold several texts: next to no padding in batches of mixed lengths.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
@common_options
def trt(  # noqa: PLR0913 (one parameter an option)
    bundle: Path, gpus: tuple[str, ...], precision: str, builder: str, profiles: tuple[str, ...],
    workspace: int | None, keep_fp32: tuple[str, ...], packed: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Build TensorRT engines of BUNDLE, one for each GPU; no GPU is needed for most."""
    from mbexport.pipeline import build_engine

    noted = noted_warnings(quiet=quiet, kind="warning", category=UserWarning)
    with noted, progress_bar("Building", quiet=quiet) as progress:
        reports = build_engine(
            bundle, gpu=gpus, precision=precision, builder=builder, profiles=profiles or None,
            workspace=workspace, keep_fp32=keep_fp32, packed=packed, progress=progress,
        )  # fmt: skip
    for message in dict.fromkeys(message for report in reports for message in report.warnings):
        note(message, quiet=quiet, kind="warning")
    if as_json:
        click.echo(to_json([report.to_dict() for report in reports]))
    else:
        click.echo("\n\n".join(map(engine_text, reports)))


@click.command()
@click.argument("bundle", type=DIRECTORY, default=DEFAULT_BUNDLE)
@click.option(
    "--precision", type=click.Choice(RUNTIME_PRECISIONS), default="auto", show_default=True,
    help="auto packs the graph that this CPU runs; of INT8 there is nothing to pack.",
)  # fmt: skip
@common_options
def prepack(bundle: Path, precision: str, quiet: bool) -> None:
    """Pack the weights of BUNDLE for this kind of CPU: services start faster, and processes share them in memory."""
    from mbexport.bench.contenders import FUSED_GRAPH
    from mbexport.runtime.kernels import kernels
    from mbexport.runtime.prepacked import prepack as run

    with progress_bar("Packing", quiet=quiet) as progress:
        progress(0, 1, "weights")
        folder = run(bundle, precision, progress)
        progress(1, 1, "weights")
    size = sum(path.stat().st_size for path in folder.iterdir())
    rows = [("prepacked", f"{folder}: {size / 1e6:.1f} MB, for this kind of CPU and this ONNX Runtime")]
    if kernels().library and folder.name == Path(FUSED_GRAPH).stem:
        rows.append(("kernels", f"{kernels()}: they read the layers' weights as they lie, and gain little by this"))
    click.echo(facts(rows))


@click.command()
@click.argument("bundle", type=DIRECTORY, default=DEFAULT_BUNDLE)
@click.option("--format", type=click.Choice(PACKAGE_FORMATS), default=PACKAGE_FORMATS[0], show_default=True)
@click.option("-o", "--output", type=DIRECTORY, default=DEFAULT_REPOSITORY, show_default=True, help="Where to.")
@click.option(
    "--name", default=PACKAGE_NAME, show_default=True, help="Of the model of texts; of token ids: NAME_model."
)
@click.option("--device", type=click.Choice(PACKAGE_DEVICES), default="cpu", show_default=True, help="To compute on.")
@click.option("--precision", type=click.Choice(PACKAGE_PRECISIONS), default="fp32", show_default=True)
@click.option("--engine", metavar="FILE", help="An engine of BUNDLE, by TensorRT (not RTX), in ONNX Runtime's place.")
@click.option("--force", is_flag=True, help="Replace the repository that is there.")
@common_options
def package(bundle: Path, quiet: bool, **choices: Any) -> None:
    """Write Triton Inference Server's model repository: texts in, answers out."""
    from mbexport.pipeline import package as write

    with noted_warnings(quiet=quiet, kind="warning"), progress_bar("Copying", quiet=quiet) as progress:
        report = write(bundle, progress=progress, **choices)
    click.echo(package_text(report, choices["output"]))
