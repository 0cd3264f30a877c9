"""Parameters that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

DIRECTORY = click.Path(path_type=Path)
BASE = click.option("--base", type=DIRECTORY, help="Base model of an adapter; default: the one that it names.")
