"""Files with texts: .txt, .jsonl, .json and .csv. Standard library only."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from mbexport.errors import InputError

Text = str | tuple[str, str]  # a pair is two segments of one input
LONGEST_FIELD = 2**30  # characters of a text in a CSV file; the csv module allows 2**17 by default
SUFFIXES = (".txt", ".jsonl", ".json", ".csv")


def read_texts(path: Path) -> list[Text]:
    """The texts of a file; an item with a ``text_pair`` gives a pair.

    ``.txt``: one a line, an empty line an empty text. ``.jsonl``: one JSON text, or object with a
    ``text`` and perhaps a ``text_pair``, a line. ``.json``: a list of those. ``.csv``: columns
    of these names.

    Raises:
        InputError: the file is missing, of another kind, damaged, or holds no text.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} ends in {path.suffix or 'nothing'!r}, expected one of {', '.join(SUFFIXES)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            if path.suffix.lower() == ".txt":
                texts: list[Text] = [line.rstrip("\r\n") for line in stream]
            elif path.suffix.lower() == ".csv":
                texts = _from_csv(path, stream)
            elif path.suffix.lower() == ".jsonl":
                lines = ((n, line) for n, line in enumerate(stream, 1) if line.strip())
                texts = [_text(f"{path}, line {n}", json.loads(line)) for n, line in lines]
            else:
                items = json.load(stream)
                if not isinstance(items, list):
                    raise InputError(f"{path} holds a JSON {type(items).__name__}, expected a list")
                texts = [_text(f"{path}, item {n}", item) for n, item in enumerate(items)]
    except OSError as cause:
        raise InputError(f"{path} cannot be read: {cause.strerror}") from cause
    except (ValueError, RecursionError, csv.Error) as cause:  # not UTF-8, not JSON, no CSV
        raise InputError(f"{path} is damaged: {cause}") from cause
    if not any(map(_is_text, texts)):
        raise InputError(f"{path} holds no text")
    return texts


def _is_text(item: Text) -> bool:
    return any(part.strip() for part in ((item,) if isinstance(item, str) else item))


def _from_csv(path: Path, stream: Iterable[str]) -> list[Text]:
    csv.field_size_limit(LONGEST_FIELD)
    rows = csv.DictReader(stream)
    if "text" not in (rows.fieldnames or []):
        raise InputError(f"{path} has the columns {rows.fieldnames}, expected one called text")
    pairs = "text_pair" in (rows.fieldnames or [])
    return [(row["text"] or "", row["text_pair"] or "") if pairs else row["text"] or "" for row in rows]


def _text(where: str, item: object) -> Text:
    fields = item if isinstance(item, dict) else {"text": item}
    text, second = fields.get("text"), fields.get("text_pair") or ""
    if not isinstance(text, str) or not isinstance(second, str):
        raise InputError(f"{where}: found {str(item)[:60]!r}, expected a text or an object with a text")
    return (text, second) if fields.get("text_pair") is not None else text
