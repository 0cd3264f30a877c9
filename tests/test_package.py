"""Promises of the package as a whole: light imports, one direction, a small public surface."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import mbexport

PACKAGE = Path(mbexport.__file__).parent
ROOT = PACKAGE.parent

# A stage may import those to its left; the modules at the top of the package are shared, and so is ``disk``.
STAGES = (
    "disk",
    "page",
    "checkpoint",
    "graph",
    "precision",
    "bundle",
    "engines",
    "runtime",
    "parity",
    "quantize",
    "bench",
    "packaging",
    "cli",
)
ALLOWED = {
    "disk": set(),
    "page": set(),
    "checkpoint": set(),
    "graph": {"checkpoint"},
    "precision": {"checkpoint", "graph"},
    "bundle": {"checkpoint", "graph", "precision"},
    "engines": {"checkpoint", "graph", "precision", "bundle"},
    "runtime": set(),
    "parity": {"page", "checkpoint", "graph", "bundle", "runtime"},  # the search builds no graph, and knows their parts
    "quantize": {"page", "checkpoint", "graph", "precision", "bundle", "runtime", "parity"},
    "bench": {"runtime"},
    "packaging": {"runtime"},
    "cli": {"checkpoint", "engines", "runtime", "parity", "quantize", "bench", "packaging"},
}


@pytest.mark.parametrize(
    "module",
    [
        "mbexport.runtime",
        "mbexport",
        "mbexport.cli",
        "mbexport.bench.run",
        "mbexport.engines.gpus",
        "mbexport.packaging.run",
        "mbexport.page.engines",
    ],
)
def test_import_is_light_and_writes_nothing(module: str, tmp_path: Path) -> None:
    heavy = "{'torch', 'transformers', 'onnx', 'onnx_ir', 'openvino', 'matplotlib', 'polygraphy', 'tensorrt_rtx'}"
    script = f"import sys, {module}; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
    assert list(tmp_path.iterdir()) == []


def test_loading_and_running_a_bundle_stays_light(example_bundle: Path) -> None:
    script = (
        "import sys; from mbexport.runtime import load; "
        f"print(load({str(example_bundle)!r})(['The central bank raised its main interest rate.'])[0]['label']); "
        "print({'torch', 'transformers', 'onnx', 'onnx_ir', 'click', 'asyncio', 'cuda', 'tensorrt', 'tensorrt_rtx', "
        "'mbexport.runtime.on_gpu'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["business", "set()"]


def imported_modules(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("stage", STAGES)
def test_imports_go_one_way(stage: str) -> None:
    for path in (PACKAGE / stage).rglob("*.py"):
        for module in imported_modules(path):
            parts = module.split(".")
            if parts[0] == "mbexport" and len(parts) > 1 and parts[1] in STAGES:
                assert parts[1] in ALLOWED[stage] | {stage, "disk"}, f"{path} imports {module}"


def test_every_stage_has_its_rule() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders == set(STAGES) == set(ALLOWED)


def test_public_names_are_documented_and_typed() -> None:
    from mbexport import errors, runtime

    public = [
        mbexport.export_onnx,
        mbexport.build_engine,
        mbexport.validate,
        mbexport.package,
        runtime.load,
        runtime.Model.__call__,
        runtime.Model.embed,
        runtime.Batcher.submit,
        runtime.Batcher.__call__,
        runtime.Batcher.answer,
        runtime.Batcher.check,
    ]
    for function in (*public, runtime.Model.logits):
        assert "Raises:" in (function.__doc__ or ""), function
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty
        typed = [p for p in signature.parameters.values() if p.name != "self"]
        assert all(p.annotation is not inspect.Parameter.empty for p in typed)
    roots = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert all(issubclass(error, mbexport.MbexportError) for error in roots)
    assert len(roots) > 5


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mbexport.nothing


def test_named_extras_exist() -> None:
    from mbexport.optional import EXTRA_OF

    section = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("\n[")[0]
    declared = set(re.findall(r"^(\w+) = ", section, re.MULTILINE))
    assert set(EXTRA_OF.values()) <= declared


def test_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from mbexport import optional

    monkeypatch.setattr(optional, "find_spec", lambda _: None)
    with pytest.raises(mbexport.MbexportError, match=r"pip install 'mbexport\[export\]'"):
        mbexport.export_onnx("anything")


def test_the_runtime_is_small_to_install() -> None:
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".pyc", ".c", ".h")]
    assert sum(len(zlib.compress(path.read_bytes())) for path in files) < 4.3 * 10**5  # as a wheel holds them
    section = (ROOT / "pyproject.toml").read_text().split("\ndependencies = [")[1].split("]")[0]
    assert re.findall(r'"([a-z]+)', section) == ["click", "numpy", "onnxruntime", "tokenizers"]


def test_no_file_and_no_function_is_long() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 60, f"{path}: {node.name}"
