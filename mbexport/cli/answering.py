"""The command that answers texts."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from mbexport.cli.arguments import chunks, paired, split_bundle, stdin
from mbexport.cli.console import common_options, noted_warnings, progress_bar
from mbexport.cli.parameters import DIRECTORY
from mbexport.cli.show import answer_json, answer_text
from mbexport.errors import InputError, MbexportError
from mbexport.options import DEVICES, RUNTIME_PRECISIONS


@click.command()
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
            try:
                answers = model.embed(chunk, prompt_name=prompt) if prompt else model(chunk)
            except MbexportError as cause:  # which counts from the chunk's first
                raise type(cause)(f"behind the first {done} texts, {cause}" if done else str(cause)) from cause
            for text, answer in zip(chunk, answers, strict=True):
                click.echo(answer_json(text, answer, task) if as_json else answer_text(text, answer, task))
            done += len(chunk)
            progress(done, total, "")
