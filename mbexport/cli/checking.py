"""Commands that look at what there is: proof of parity, measurements, contents."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from mbexport.cli.console import FAILED, common_options, note, printable_lines, progress_bar
from mbexport.cli.parameters import BASE, DIRECTORY
from mbexport.cli.show import bench_text, manifest_text
from mbexport.cli.show_parity import parity_text
from mbexport.errors import InputError
from mbexport.files import to_json
from mbexport.options import DEFAULT_BUNDLE, DEFAULT_MAX_LENGTH, LARGEST_ERROR, REFERENCES

VISIBLE_ABOVE = 65  # tokens; up to there a window of 64 to either side hides nothing


@click.command()
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
    text = printable_lines(parity_text(result, all_stages=choices["bisect"]))
    click.echo(to_json(result.to_dict()) if as_json else text)
    sys.exit(0 if result.passed else FAILED)


@click.command()
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
    click.echo(result.to_json().rstrip() if as_json else printable_lines(bench_text(result)))
    sys.exit(FAILED if result.faults else 0)


@click.command()
@click.argument("bundle", type=DIRECTORY, default=DEFAULT_BUNDLE)
@click.option("--verify", is_flag=True, help="Compare every file with the SHA-256 that the manifest has of it.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@common_options
def inspect(bundle: Path, verify: bool, as_json: bool, quiet: bool) -> None:
    """Show what is in BUNDLE; with --verify, the exit code is 1 if a file is another one than the manifest says."""
    from mbexport import manifest as manifests
    from mbexport.checkpoint.load import read_bundle_spec
    from mbexport.runtime.kernels import kernels
    from mbexport.verifying import verdict, wrong_files

    manifest = manifests.read(bundle)
    if as_json:
        click.echo(manifest.to_json().rstrip())
    else:
        click.echo(manifest_text(manifest, read_bundle_spec(bundle, manifest), str(kernels())))
    if verify:
        with progress_bar("Verifying", quiet=quiet) as progress:
            faults = wrong_files(bundle, manifest, progress)
            if (bundle / "prepacked").is_dir():
                from mbexport.runtime.prepacked import wrong_prepacked

                faults += wrong_prepacked(bundle)
        click.echo(printable_lines(verdict(bundle, faults)), err=True)
        sys.exit(FAILED if faults else 0)
