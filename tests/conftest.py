from __future__ import annotations

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
