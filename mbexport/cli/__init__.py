"""The commands. Each imports its stage inside, so that ``--help`` answers at once."""

from __future__ import annotations

import click

from mbexport.cli.answering import predict
from mbexport.cli.checking import bench, inspect, validate
from mbexport.cli.console import OneLineGroup
from mbexport.cli.making import int8, onnx, package, prepack, trt
from mbexport.version import __version__


@click.group(cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context) -> None:
    """Fine-tuned ModernBERT to production: export, prove, run."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (onnx, int8, trt, validate, bench, predict, prepack, inspect, package):
    main.add_command(command)
