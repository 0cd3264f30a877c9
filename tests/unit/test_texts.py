from __future__ import annotations

from pathlib import Path

import pytest

from mbexport.errors import InputError
from mbexport.texts import read_texts

READ = {
    "a.txt": ("one\n\ntwo\u2028still\r\nthree\n", ["one", "", "two\u2028still", "three"]),
    "b.TXT": ("\ufeffone", ["one"]),
    "a.jsonl": ('"one"\n{"text": "two\\nlines", "label": "x"}\n\n', ["one", "two\nlines"]),
    "a.json": ('["one", {"text": "two"}]', ["one", "two"]),
    "long.csv": ("text\n" + "x" * 200_000, ["x" * 200_000]),
    "pairs.jsonl": ('{"text": "q", "text_pair": "c"}\n{"text": "q", "text_pair": null}', [("q", "c"), "q"]),
    "a.csv": ('label,text\nx,"one, with a comma"\ny,two\n', ["one, with a comma", "two"]),
}
REFUSED = {
    "a.pdf": ("x", "ends in '.pdf'"),
    "empty.txt": ("\n \n", "holds no text"),
    "b.jsonl": ('"one"\n{"body": "two"}', "line 2: found"),
    "c.jsonl": ("{", "is damaged"),
    "b.json": ('{"text": "one"}', "a JSON dict, expected a list"),
    "c.json": ("[1]", "item 0: found '1'"),
    "b.csv": ("body\nx\n", "expected one called text"),
    "latin1.txt": ("\xff", "is damaged"),
}


@pytest.mark.parametrize("name", READ)
def test_read(name: str, tmp_path: Path) -> None:
    content, expected = READ[name]
    (tmp_path / name).write_bytes(content.encode("utf-8"))
    assert read_texts(tmp_path / name) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError) as raised:
        read_texts(tmp_path / name)
    assert message in str(raised.value)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_texts(tmp_path / "none.txt")
