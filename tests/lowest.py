"""What `make test-lowest` does to the tests, as a plugin: `pytest -p tests.lowest`.

Where torch is not installed, whatever imports or asks for it is skipped, file or test, and says so. So are models
that old transformers cannot make, and `mbexport int8`, which refuses old ONNX Runtime. The lowest click's test
runner is told to keep standard error apart, as later ones always do.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import ModuleType

import pytest
from click.testing import CliRunner

from mbexport.quantize import run

# Before 5.10 it makes no YaRN of one kind of layers only; before 5.17, of a model whose layers are all of one kind, it
# writes settings of the other kind that it refuses itself.
MODELS = {
    "yarn on global layers": (5, 10),
    "all layers global": (5, 17),
    "all layers local": (5, 17),
    "one layer": (5, 17),
}
ALL_OF_THEM = "test_variants_differ_from_one_another"
# Of a random model: ONNX Runtime 1.23 rounds it to a cosine of 0.99985, the limit is 0.9999; from 1.29 on 0.99993.
ROUNDED = "test_a_reference_in_half_precision_finds_no_fault_in_a_right_graph"
ONNX_RUNTIME = tuple(map(int, version("onnxruntime").split(".")[:2]))


class Skips:
    """Finds no module, and ends the test that looks for one of PyTorch's."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        del path, target
        if name in ("torch", "transformers"):
            pytest.skip(f"needs {name}", allow_module_level=True)
        return None


if importlib.util.find_spec("torch") is None:
    sys.meta_path.insert(0, Skips)
if ONNX_RUNTIME < run.OLDEST_ONNX_RUNTIME:
    run._check_onnx_runtime = functools.partial(pytest.skip, "needs a later ONNX Runtime")
if "mix_stderr" in inspect.signature(CliRunner).parameters:
    CliRunner.__init__ = functools.partialmethod(CliRunner.__init__, mix_stderr=False)  # type: ignore[method-assign]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what the installed transformers cannot make, and what the installed ONNX Runtime rounds too much."""
    for item in items:
        if item.name == ROUNDED and ONNX_RUNTIME < (1, 29):
            item.add_marker(pytest.mark.skip(reason="needs ONNX Runtime 1.29"))
    if Skips in sys.meta_path:
        return
    found = tuple(map(int, version("transformers").split(".")[:2]))
    for item in items:
        needs = [since for model, since in MODELS.items() if f"[{model}]" in item.name or item.name == ALL_OF_THEM]
        needed = max(needs, default=found)
        if found < needed:
            item.add_marker(pytest.mark.skip(reason=f"needs transformers {'.'.join(map(str, needed))}"))
