from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mbexport import export_onnx
from tests.checkpoints import EXAMPLE, save_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier checkpoint, not to be changed."""
    return save_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_bundle(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle, not to be changed."""
    bundle = tmp_path_factory.mktemp("tiny") / "bundle"
    export_onnx(tiny, bundle)
    return bundle


@pytest.fixture(scope="session")
def example_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained example's bundle, not to be changed."""
    bundle = tmp_path_factory.mktemp("example") / "bundle"
    export_onnx(EXAMPLE, bundle)
    return bundle


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a task of ``tests.packages``, not to be changed."""
    from tests.packages import export_task  # imports torch, which not all environments have

    made: dict[str, Path] = {}

    def bundle(task: str) -> Path:
        if task not in made:
            made[task] = export_task(task, tmp_path_factory.mktemp(task))
        return made[task]

    return bundle


@pytest.fixture(scope="session")
def record_parity() -> Iterator[Callable[[str, str, float], None]]:
    """Notes the largest error, as a share of the spread, that a kind of model was found to have.

    `make parity-table` prints what was noted as the README's table.
    """
    figures: dict[str, dict[str, float]] = {}

    def record(group: str, kind: str, relative_error: float) -> None:
        kinds = figures.setdefault(group, {})
        kinds[kind] = max(relative_error, kinds.get(kind, 0.0))

    yield record
    directory = Path(__file__).parent.parent / "build"
    directory.mkdir(exist_ok=True)
    path = directory / "parity.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | figures, indent=2))
