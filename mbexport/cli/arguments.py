"""What ``mbexport predict`` is given: a bundle, and texts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mbexport.errors import BundleError, InputError
from mbexport.options import DEFAULT_BUNDLE

TEXTS_AT_ONCE = 256  # of a stream, so that its memory stays bounded


def paired(question: str, texts: Iterable[Any]) -> Iterable[Any]:
    """Pairs with one first text; a list stays a list, a stream a stream."""
    pairs = ((question, text) for text in texts)
    return list(pairs) if isinstance(texts, list) else pairs


def split_bundle(arguments: tuple[str, ...]) -> tuple[Path, list[str]]:
    """The first argument is the bundle where it is a directory, else a text for the default bundle.

    Raises:
        BundleError: there is no default bundle then.
    """
    if not arguments:
        return Path(DEFAULT_BUNDLE), []
    if os.path.isdir(arguments[0]):  # noqa: PTH112 (False, not an error, for a text too long to be a path)
        return Path(arguments[0]), list(arguments[1:])
    if not Path(DEFAULT_BUNDLE).is_dir():
        raise BundleError(f"{arguments[0]!r:.200} is no directory, and there is no ./{DEFAULT_BUNDLE}; name a bundle")
    return Path(DEFAULT_BUNDLE), list(arguments)


def stdin() -> Iterator[str]:
    """Standard input, line by line.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        for line in sys.stdin.buffer:
            yield line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as cause:
        raise InputError(f"standard input is not UTF-8: {cause}") from cause


def chunks(texts: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of at most TEXTS_AT_ONCE items."""
    remaining = iter(texts)
    while chunk := list(islice(remaining, TEXTS_AT_ONCE)):
        yield chunk
