from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.service.process import Service
from mbexport import export_onnx
from mbexport.runtime import Model, load
from tests.checkpoints import ENCODER, EXAMPLE, save_checkpoint

PATIENCE = 60.0  # seconds; far more than anything here takes


@pytest.fixture(scope="session")
def model(example_bundle: Path) -> Model:
    """What the service's answers are compared with."""
    return load(example_bundle)


@pytest.fixture(scope="session")
def service(example_bundle: Path) -> Iterator[Service]:
    """A running service with its default limits; leave it as it is."""
    with Service(example_bundle) as running:
        running.until_ready(PATIENCE)
        yield running


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers pipeline with a prompt."""
    folder = tmp_path_factory.mktemp("encoder")
    checkpoint = save_checkpoint(folder / "checkpoint", ENCODER, vocab_size=5000)
    shutil.copy(EXAMPLE / "tokenizer.json", checkpoint)
    names = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    modules = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for idx, (path, kind) in enumerate(names)
    ]
    pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}
    (checkpoint / "1_Pooling").mkdir()
    (checkpoint / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    (checkpoint / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "search for: "}}))
    export_onnx(checkpoint, folder / "bundle")
    return folder / "bundle"


class Held:
    """A service whose backend a test holds."""

    def __init__(self, bundle: Path, folder: Path, **settings: object) -> None:
        self.orders = folder / "orders"
        self.log = folder / "log"
        self.service = Service(bundle, command=("-m", "tests.service.held", str(self.orders)), log=self.log, **settings)
        self.service.until_ready(PATIENCE)

    def order(self, what: str) -> None:
        """From now on; an empty order is to compute."""
        temporary = self.orders.with_suffix(".new")
        temporary.write_text(what)
        temporary.replace(self.orders)


@pytest.fixture
def held(example_bundle: Path, tmp_path: Path) -> Iterator[Callable[..., Held]]:
    """Starts services of that kind."""
    started: list[Held] = []

    def start(**settings: object) -> Held:
        started.append(Held(example_bundle, tmp_path, **settings))
        return started[-1]

    yield start
    for one in started:
        one.service.__exit__(None, None, None)


def until(condition: Callable[[], Any]) -> Any:
    """Wait until something holds; what it gave."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come to pass")


def metric(service: Service, name: str) -> float:
    """A figure of /metrics, 0 where it is not there yet."""
    lines = service.ask("GET", "/metrics")[1].splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), 0.0)
