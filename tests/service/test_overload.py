"""examples/service offered four times what it can do, for some seconds; `make bench-service` measures it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.service.process import ROOT, Service
from mbexport.runtime import Model
from tests.checkpoints import EXAMPLE
from tests.service.conftest import PATIENCE

Rows = list[dict[str, Any]]
SENTENCES = (EXAMPLE.parent / "sentences.txt").read_text("utf-8").splitlines()


@pytest.fixture(scope="module")
def requests(model: Model) -> Rows:
    """Texts from 20 to 1,000 tokens, each like no other; every tenth request has four."""
    texts = [
        f"{number}. " + " ".join(SENTENCES[(number + place) % len(SENTENCES)] for place in range(1 + number % 40))
        for number in range(120)
    ]
    answers = model(texts)
    slices = [slice(n, n + 4 if n % 10 == 0 else n + 1) for n in range(len(texts))]
    return [{"path": "/predict", "body": {"inputs": texts[one]}, "expected": answers[one]} for one in slices]


def send(port: int, path: Path, *how: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.service.load", str(port), str(path)]
    result = subprocess.run([*command, *how], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    return dict(json.loads(result.stdout))


def test_four_times_its_capacity(example_bundle: Path, requests: Rows, tmp_path: Path) -> None:
    path = tmp_path / "requests.json"
    path.write_text(json.dumps(requests, default=float))
    with Service(example_bundle, log=tmp_path / "log") as service:
        service.until_ready(PATIENCE)
        capacity = send(service.port, path, "--seconds", "1", "--clients", "12")  # whose texts fit the queue
        assert (capacity["lost"], capacity["wrong"], set(capacity["statuses"])) == (0, 0, {"200"})
        found = send(service.port, path, "--seconds", "3", "--rate", str(4 * capacity["accepted_per_second"]))
        assert service.ask("GET", "/health/ready")[0] == 200
        log = (tmp_path / "log").read_text()
    assert (found["lost"], found["wrong"]) == (0, 0)
    assert set(found["statuses"]) == {"200", "429"}  # some accepted, some refused; how many, the benchmark says
    assert "Traceback" not in log


def test_the_load_generator_sees_wrong_and_lost_answers(example_bundle: Path, requests: Rows, tmp_path: Path) -> None:
    path = tmp_path / "requests.json"
    rows = [dict(row) for row in requests[6:9]]
    right = rows[1]["expected"][0]
    rows[1]["expected"] = [{**right, "score": right["score"] + 1e-3}]
    path.write_text(json.dumps(rows, default=float))
    with Service(example_bundle) as service:
        service.until_ready(PATIENCE)
        found = send(service.port, path, "--clients", "2")
        assert (found["sent"], found["statuses"], found["wrong"], found["lost"]) == (3, {"200": 3}, 1, 0)
        port = service.port
    command = [
        sys.executable,
        "-m",
        "benchmarks.service.load",
        str(port),
        str(path),
        "--seconds",
        "0.1",
        "--rate",
        "50",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(result.stdout)
    assert found["lost"] == found["sent"] > 0
