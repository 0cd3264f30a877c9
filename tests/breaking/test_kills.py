"""A few kills of those that ``make kills`` tries hundreds of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")  # which makes the checkpoints
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="commands run in forked children")
ROOT = Path(__file__).parents[2]


def kills(*options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.breaking.kills", *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert result.stdout, result.stderr[-2000:]
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def test_commands_that_are_killed_leave_what_holds() -> None:
    """A bundle killed at any change while it is replaced answers as the old one or as the new one; so do others."""
    summary = kills("--every-step", "replace", "--stride", "3", "--runs", "6", "--seed", "3")
    assert summary["faults"] == []
    assert summary["stopped"]["replace"] > 10
    assert sum(summary["stopped"].values()) > 15


def test_where_no_exchange_is_a_bundle_is_gone_between_two_steps_and_put_back_by_the_next_run() -> None:
    """The control: what is missing for a moment is found, and the same command run again mends it."""
    summary = kills("--every-step", "replace", "--without-exchange", "--from", "24", "--to", "28")
    assert summary["faults"]
    assert all(fault.endswith(": the bundle is gone") for fault in summary["faults"])
