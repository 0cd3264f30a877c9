"""SECURITY.md names a test for each promise; here each of them is held to exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEADER = "| What is promised | Test |\n|---|---|\n"


def promises() -> Iterator[str]:
    """The rows of all tables of promises."""
    for table in (ROOT / "SECURITY.md").read_text(encoding="utf-8").split(HEADER)[1:]:
        yield from table.partition("\n\n")[0].splitlines()


@pytest.mark.parametrize("row", promises())
def test_every_promise_names_tests_that_exist(row: str) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row.split("|")[-2])
    assert named, "no test stands behind it"
    for file, function in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert function in functions, f"{file} has no {function}"
