"""The commands. Each imports its stage inside, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from mbexport.arguments import chunks, paired, split_bundle, stdin
from mbexport.console import FAILED, OneLineGroup, common_options, facts, note, noted_warnings, progress_bar
from mbexport.errors import InputError
from mbexport.files import to_json
from mbexport.options import (
    BUILDERS,
    DEFAULT_BUNDLE,
    DEFAULT_MAX_LENGTH,
    DEFAULT_REPOSITORY,
    DEVICES,
    ENGINE_PRECISIONS,
    INT8_MAX_LENGTH,
    LARGEST_ERROR,
    MAX_F1_DROP,
    MIN_AGREEMENT,
    MIN_SIMILARITY,
    PACKAGE_DEVICES,
    PACKAGE_FORMATS,
    PACKAGE_NAME,
    PACKAGE_PRECISIONS,
    REFERENCES,
    RUNTIME_PRECISIONS,
)
from mbexport.show import answer_json, answer_text, bench_text, engine_text, manifest_text, quality_text
from mbexport.show_parity import parity_text
from mbexport.version import __version__

DIRECTORY = click.Path(path_type=Path)
BASE = click.option("--base", type=DIRECTORY, help="Base model of an adapter; default: the one that it names.")
VISIBLE_ABOVE = 65  # tokens; up to there a window of 64 to either side hides nothing


@click.group(cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context) -> None:
    """Fine-tuned ModernBERT to production: export, prove, run."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@main.command()
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


@main.command()
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
    click.echo(to_json(report.to_dict()) if as_json else quality_text(report))
    sys.exit(0 if report.passed else FAILED)


@main.command()
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


@main.command()
@click.argument("subject", type=DIRECTORY, default=DEFAULT_BUNDLE)
@click.option("--checkpoint", type=DIRECTORY, help="The checkpoint that SUBJECT was exported from.")
@click.option(
    "--against", type=DIRECTORY, metavar="OTHER",
    help="In the place of a checkpoint: another bundle, ONNX file or directory, to compare SUBJECT with.",
)  # fmt: skip
@BASE
@click.option(
    "--reference",
    type=click.Choice(REFERENCES),
    default="auto",
    show_default=True,
    help="PyTorch's attention; auto takes the strongest that runs here.",
)
@click.option("--data", type=DIRECTORY, help="Texts to compare on (.txt, .jsonl, .json or .csv).")
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    default=DEFAULT_MAX_LENGTH,
    show_default=True,
    help="Longest input, in tokens.",
)
@click.option(
    "--bisect", is_flag=True,
    help="Look into every graph layer by layer, also into INT8 ones; without it, into FP16 ones and those that fail.",
)  # fmt: skip
@click.option("--report", type=DIRECTORY, help="Directory for the report: parity.json, and parity.html for people.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@common_options
def validate(subject: Path, data: Path | None, as_json: bool, quiet: bool, **choices: Any) -> None:
    """Prove that the graphs of SUBJECT compute what PyTorch computes; if they do not, say where.

    SUBJECT is a bundle, an ONNX file, or a directory that another exporter wrote (optimum, for example). One of
    --checkpoint and --against says what it is compared with. The exit code is 1 if a graph fails.
    """
    from mbexport.pipeline import validate as run
    from mbexport.texts import read_texts

    texts = read_texts(data) if data else None
    with progress_bar("Comparing", quiet=quiet) as progress:
        result = run(subject, texts=texts, progress=progress, **choices)
    if result.longest <= VISIBLE_ABOVE:
        note(f"no input was longer than {result.longest} tokens: a lost window cannot be seen there", quiet=quiet)
    if not result.recorded and choices["checkpoint"] is not None and (subject / "mbexport.json").is_file():
        note(f"{subject} cannot be written to, so the result is not recorded there", quiet=quiet)
    click.echo(to_json(result.to_dict()) if as_json else parity_text(result, all_stages=choices["bisect"]))
    sys.exit(0 if result.passed else FAILED)


@main.command()
@click.argument("bundle", type=DIRECTORY, default=DEFAULT_BUNDLE)
@click.option("--file", "file", type=DIRECTORY, help="Texts to run, all of them as one workload.")
@click.option("--limit", type=click.IntRange(min=1), help="Take that many texts of --file, from its start.")
@click.option("--shapes", help="Texts x tokens of random ids, e.g. 1x128,8x128.")
@click.option(
    "--against",
    multiple=True,
    metavar="NAME[=PATH]",
    help="A peer: onnxruntime or openvino (PATH: an ONNX file; default: the bundle's portable graph), "
    "torch-eager, torch-sdpa or torch-compile (PATH: a checkpoint). May be given several times.",
)
@click.option(
    "--allow-error", type=click.FloatRange(0), default=100 * LARGEST_ERROR, show_default=True, metavar="PERCENT",
    help="Of the spread of FP32's answers, what peers may differ by before they are called WRONG; for INT8 peers 25.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 1024), help="Cores of every contender; default: all there are.")
@click.option("--rounds", type=click.IntRange(min=1), help="Of each workload; default: 11 to 2, by the time of a run.")
@click.option("--report", type=DIRECTORY, help="JSON file to write.")
@click.option("--pictures", type=DIRECTORY, help="Directory for pictures (SVG).")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@common_options
def bench(  # noqa: PLR0913 (one parameter an option)
    bundle: Path, file: Path | None, limit: int | None, shapes: str | None, against: tuple[str, ...],
    allow_error: float, threads: int | None, rounds: int | None, report: Path | None, pictures: Path | None,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Measure BUNDLE on this CPU, in FP32 and, where it has it, in INT8, also against peers.

    The exit code is 1 if a contender fails or answers wrong.
    """
    from mbexport.bench.pictures import check_matplotlib, draw
    from mbexport.bench.plan import make_plan
    from mbexport.bench.report import write
    from mbexport.bench.run import run_bench
    from mbexport.texts import read_texts

    if limit is not None and file is None:
        raise InputError("--limit says how many texts of --file are taken; give --file, too")
    if report is not None and report.is_dir():
        raise InputError(f"--report {report} is a directory, expected a file to write")
    if pictures is not None:
        check_matplotlib()
    names = None if shapes is None else shapes.split(",")
    texts = (file.name, read_texts(file)[:limit]) if file else None
    plan = make_plan(
        bundle, shapes=names, texts=texts, against=against, allowed_error=allow_error / 100, threads=threads,
        rounds=rounds,
    )  # fmt: skip
    for folder in (pictures, report and report.parent):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)  # before any work is done
    with progress_bar("Measuring", quiet=quiet) as progress:
        result = run_bench(plan, progress)
    for message in result.notes:
        note(message, quiet=quiet)
    if report is not None:
        write(result, report)
    if pictures is not None:
        draw(result, pictures)
    click.echo(result.to_json().rstrip() if as_json else bench_text(result))
    sys.exit(FAILED if result.faults else 0)


@main.command()
@click.argument("bundle_and_texts", metavar="[BUNDLE] [TEXT]...", nargs=-1)
@click.option(
    "--question", "--query", "question", help="Paired with every TEXT; with multiple choice, TEXTs are its choices."
)
@click.option("--prompt", help="Name of a prompt of the model's to put before each TEXT (embeddings).")
@click.option("--file", "file", type=DIRECTORY, help="Texts from a file (.txt, .jsonl, .json or .csv).")
@click.option("--threads", type=click.IntRange(min=1), help="Cores to use; default: as ONNX Runtime chooses.")
@click.option(
    "--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="auto takes a GPU where one is."
)
@click.option(
    "--precision", type=click.Choice(RUNTIME_PRECISIONS), default="auto", show_default=True,
    help="auto takes INT8 or FP8 where the quality gate passed; a named one is used, and a doubt is said.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON Lines.")
@common_options
def predict(  # noqa: PLR0913 (one parameter an option)
    bundle_and_texts: tuple[str, ...], question: str | None, prompt: str | None, file: Path | None,
    threads: int | None, device: str, precision: str, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Answer TEXTs, those of --file, or standard input line by line, with a bundle."""
    from mbexport.runtime import load
    from mbexport.texts import read_texts

    bundle, given = split_bundle(bundle_and_texts)
    if given and file:
        raise InputError(f"texts were given both as arguments and by --file {file}; give one of them")
    with noted_warnings(quiet=quiet):
        # A few texts do not pay for a second session.
        model = load(bundle, device, precision, threads, share_cores=not given)
    task = model.manifest.task
    texts: Iterable[Any] = given or (read_texts(file) if file else stdin())
    if question is not None:
        texts = [(question, list(texts))] if task == "multiple-choice" else paired(question, texts)
    total = len(texts) if isinstance(texts, list) else 0  # of a stream nobody knows
    silent = quiet or not total or sys.stdout.isatty()  # answers on the screen show the progress themselves
    with noted_warnings(quiet=quiet), progress_bar("Answering", quiet=silent) as progress:
        done = 0
        for chunk in chunks(texts):
            answers = model.embed(chunk, prompt_name=prompt) if prompt else model(chunk)
            for text, answer in zip(chunk, answers, strict=True):
                click.echo(answer_json(text, answer, task) if as_json else answer_text(text, answer, task))
            done += len(chunk)
            progress(done, total, "")


@main.command()
@click.argument("bundle", type=DIRECTORY, default=DEFAULT_BUNDLE)
@click.option(
    "--precision", type=click.Choice(RUNTIME_PRECISIONS), default="auto", show_default=True,
    help="auto packs the graph that this CPU runs; of INT8 there is nothing to pack.",
)  # fmt: skip
@common_options
def prepack(bundle: Path, precision: str, quiet: bool) -> None:
    """Pack the weights of BUNDLE for this kind of CPU: services start faster, and processes share them in memory."""
    from mbexport.runtime.prepacked import prepack as run

    with progress_bar("Packing", quiet=quiet) as progress:
        progress(0, 1, "weights")
        folder = run(bundle, precision)
        progress(1, 1, "weights")
    size = sum(path.stat().st_size for path in folder.iterdir())
    click.echo(facts([("prepacked", f"{folder}: {size / 1e6:.1f} MB, for this kind of CPU and this ONNX Runtime")]))


@main.command()
@click.argument("bundle", type=DIRECTORY, default=DEFAULT_BUNDLE)
@click.option("--verify", is_flag=True, help="Compare every file with the SHA-256 that the manifest has of it.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@common_options
def inspect(bundle: Path, verify: bool, as_json: bool, quiet: bool) -> None:
    """Show what is in BUNDLE; with --verify, the exit code is 1 if a file is another one than the manifest says."""
    from mbexport import manifest as manifests
    from mbexport.checkpoint.load import read_bundle_spec
    from mbexport.verifying import verdict, wrong_files

    manifest = manifests.read(bundle)
    click.echo(manifest.to_json().rstrip() if as_json else manifest_text(manifest, read_bundle_spec(bundle, manifest)))
    if verify:
        with progress_bar("Verifying", quiet=quiet) as progress:
            faults = wrong_files(bundle, manifest, progress)
        click.echo(verdict(bundle, faults), err=True)
        sys.exit(FAILED if faults else 0)


@main.command()
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
    from mbexport.show import package_text

    with noted_warnings(quiet=quiet, kind="warning"), progress_bar("Copying", quiet=quiet) as progress:
        report = write(bundle, progress=progress, **choices)
    click.echo(package_text(report, choices["output"]))
