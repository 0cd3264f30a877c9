"""Files with texts: .txt, .jsonl, .json and .csv. Standard library only."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mbexport.errors import InputError

Text = str | tuple[str, str]  # a pair is two segments of one input
LONGEST_FIELD = 2**30  # characters of a text in a CSV file; the csv module allows 2**17 by default
SUFFIXES = (".txt", ".jsonl", ".json", ".csv")


@dataclass(frozen=True)
class Example:
    """A text, and the label that it should get, where one is known."""

    text: Text
    label: str | None = None


def read_texts(path: Path) -> list[Text]:
    """The texts of a file, as :func:`read_examples` reads them."""
    return [example.text for example in read_examples(path)]


def read_examples(path: Path) -> list[Example]:
    """The texts of a file, with their labels; an item with a ``text_pair`` gives a pair.

    ``.txt``: one a line, an empty line an empty text. ``.jsonl``: one JSON text, or object with a
    ``text`` and perhaps a ``text_pair`` and a ``label`` (a text or a whole number), a line. ``.json``:
    a list of those. ``.csv``: columns of these names.

    Raises:
        InputError: the file is missing, of another kind, damaged, or holds no text.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} ends in {path.suffix or 'nothing'!r}, expected one of {', '.join(SUFFIXES)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            if path.suffix.lower() == ".txt":
                examples = [Example(line.rstrip("\r\n")) for line in stream]
            elif path.suffix.lower() == ".csv":
                examples = _from_csv(path, stream)
            elif path.suffix.lower() == ".jsonl":
                lines = ((n, line) for n, line in enumerate(stream, 1) if line.strip())
                examples = [_example(f"{path}, line {n}", json.loads(line)) for n, line in lines]
            else:
                items = json.load(stream)
                if not isinstance(items, list):
                    raise InputError(f"{path} holds a JSON {type(items).__name__}, expected a list")
                examples = [_example(f"{path}, item {n}", item) for n, item in enumerate(items)]
    except OSError as cause:
        raise InputError(f"{path} cannot be read: {cause.strerror}") from cause
    except (ValueError, RecursionError, csv.Error) as cause:  # not UTF-8, not JSON, no CSV
        raise InputError(f"{path} is damaged: {cause}") from cause
    if not any(_is_text(example.text) for example in examples):
        raise InputError(f"{path} holds no text")
    return examples


def _is_text(item: Text) -> bool:
    return any(part.strip() for part in ((item,) if isinstance(item, str) else item))


def _from_csv(path: Path, stream: Iterable[str]) -> list[Example]:
    csv.field_size_limit(LONGEST_FIELD)
    rows = csv.DictReader(stream)
    columns = rows.fieldnames or []
    if "text" not in columns:
        raise InputError(f"{path} has the columns {rows.fieldnames}, expected one called text")
    pairs = "text_pair" in columns
    return [
        Example((row["text"] or "", row["text_pair"] or "") if pairs else row["text"] or "", row.get("label") or None)
        for row in rows
    ]


def _example(where: str, item: object) -> Example:
    fields = item if isinstance(item, dict) else {"text": item}
    text, second, label = fields.get("text"), fields.get("text_pair") or "", fields.get("label")
    if not isinstance(text, str) or not isinstance(second, str):
        raise InputError(f"{where}: found {str(item)[:60]!r}, expected a text or an object with a text")
    return Example(
        (text, second) if fields.get("text_pair") is not None else text,
        str(label) if type(label) in (str, int) else None,
    )
