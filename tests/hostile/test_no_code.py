"""No file of a checkpoint or a bundle is run: nothing is unpickled, and no class that a file names is imported."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import mbexport
from mbexport import export_onnx, validate
from mbexport.bench.contenders import Contender
from mbexport.bench.engines import TorchEngine
from mbexport.errors import InputError, MbexportError
from mbexport.precision.calibration import Calibration
from tests.checkpoints import ENCODER, EXAMPLE, save_checkpoint
from tests.hostile.bounded import run_bounded

PACKAGE = Path(mbexport.__file__).parent


class Trap:
    """Its pickle makes a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self._mark,)  # type: ignore[return-value]


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "mark")))  # noqa: S301 (ours)
    assert (tmp_path / "mark").exists()


def test_nothing_that_unpickles_or_evaluates_is_called() -> None:
    names = {"eval", "exec", "__import__"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                assert not modules & {"pickle", "marshal", "shelve", "dill", "joblib", "yaml", "code"}, path
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
                assert called not in names or owner, f"{path}:{node.lineno}"
                assert (owner, called) != ("torch", "load"), f"{path}:{node.lineno}"
                for keyword in node.keywords:
                    if keyword.arg in ("allow_pickle", "trust_remote_code"):
                        assert ast.unparse(keyword.value) == "False", f"{path}:{node.lineno}"
                if called == "from_pretrained":
                    assert "use_safetensors" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"


@pytest.fixture
def trapped(tmp_path: Path) -> tuple[Path, Path]:
    """The example with traps in the place of everything that others unpickle, and the file that they would make."""
    checkpoint, mark = Path(shutil.copytree(EXAMPLE, tmp_path / "checkpoint")), tmp_path / "mark"
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth",
                 "adapter_model.bin", "tf_model.h5", "flax_model.msgpack", "model.ckpt.index"):  # fmt: skip
        (checkpoint / name).write_bytes(pickle.dumps(Trap(mark)))
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"},
        "_name_or_path": "/somewhere/else",
        "attn_implementation": "someone/kernels",
        "custom_pipelines": {"text-classification": {"impl": "evil.Pipeline"}},
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n")
    return checkpoint, mark


def test_pickles_and_code_beside_the_weights_are_left_alone(trapped: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint, mark = trapped
    export_onnx(checkpoint, tmp_path / "bundle")
    assert validate(tmp_path / "bundle", checkpoint=checkpoint, max_length=70).passed
    TorchEngine(Contender("torch-sdpa", "torch-sdpa", str(checkpoint), 1))
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors", "calibration.npz", "model.onnx"])
def test_a_pickle_by_another_name_is_damaged(name: str, example_bundle: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    checkpoint = Path(shutil.copytree(EXAMPLE, tmp_path / "checkpoint"))
    (checkpoint / name).write_bytes(pickle.dumps(Trap(mark)))
    if name == "adapter_model.safetensors":
        settings = {"peft_type": "LORA", "base_model_name_or_path": str(EXAMPLE)}
        (checkpoint / "adapter_config.json").write_text(json.dumps(settings))
    readers = {
        "calibration.npz": lambda: Calibration.load(checkpoint / name),
        "model.onnx": lambda: validate(checkpoint / name, against=example_bundle),
    }
    read = readers.get(name, lambda: export_onnx(checkpoint, tmp_path / "bundle"))
    with pytest.raises(MbexportError, match=rf"{name}.*(damaged|readable)"):
        read()
    assert not mark.exists()


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "calibration.npz", **{"x.factor": np.array([Trap(tmp_path / "mark")], dtype=object)})
    with pytest.raises(MbexportError, match="damaged"):
        Calibration.load(tmp_path / "calibration.npz")
    assert not (tmp_path / "mark").exists()


def test_a_pickle_alone_is_no_contender(trapped: tuple[Path, Path]) -> None:
    checkpoint, mark = trapped
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        TorchEngine(Contender("torch-sdpa", "torch-sdpa", str(checkpoint), 1))
    assert not mark.exists()


def test_a_class_that_modules_json_names_is_never_imported(tmp_path: Path) -> None:
    """sentence-transformers before version 6 imports it, from a file of the checkpoint."""
    checkpoint = save_checkpoint(tmp_path / "checkpoint", ENCODER, vocab_size=5000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, checkpoint)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "evil.Pooling"},
    ]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    (checkpoint / "1_Pooling").mkdir()
    (checkpoint / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (checkpoint / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w').close()\nclass Pooling: pass\n")
    export_onnx(checkpoint, tmp_path / "bundle")
    with pytest.raises(InputError, match=r"names the class 'evil\.Pooling', and only what is of sentence_transformers"):
        validate(tmp_path / "bundle", checkpoint=checkpoint, max_length=70)
    assert not (tmp_path / "mark").exists()


ESCAPES = "\x1b[2J\x1b]0;x\x07\x9b31m\u202e\nnext"


def test_nothing_is_said_that_a_terminal_obeys(example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    raw = json.loads((bundle / "mbexport.json").read_text())
    raw["labels"] = [f"{ESCAPES}{number}" for number in range(len(raw["labels"]))]
    raw["source"]["name"], raw["notes"] = ESCAPES, [ESCAPES]
    raw["checks"] = [{"what": ESCAPES, "reference": ESCAPES, "figures": {}, "passed": True}]
    (bundle / "mbexport.json").write_text(json.dumps(raw))
    checkpoint = Path(shutil.copytree(EXAMPLE, tmp_path / "checkpoint"))
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"id2label": dict(enumerate(raw["labels"])), "label2id": {}, "model_type": ESCAPES}
    (checkpoint / "config.json").write_text(json.dumps(config))
    outcomes = run_bounded(
        [
            ["predict", bundle, f"a text{ESCAPES}"],
            ["inspect", bundle],
            ["inspect", bundle, "--verify"],
            ["onnx", checkpoint, "-o", tmp_path / f"out{ESCAPES}"],
            ["predict", tmp_path / f"none{ESCAPES}", "a text"],
            ["validate", bundle, "--against", tmp_path / f"none{ESCAPES}"],
        ]
    )
    for outcome in outcomes:
        for line in (outcome.stdout + outcome.stderr).split("\n"):
            assert line.replace("\t", "").isprintable(), line
            assert not line.startswith("next")


def test_what_libraries_log_of_a_stranger_s_graph_is_not_shown(example_bundle: Path, tmp_path: Path) -> None:
    graph = Path(shutil.copytree(example_bundle / "onnx", tmp_path / "graphs")) / "model.onnx"
    shutil.copy(example_bundle / "config.json", graph.parent)
    made = onnx.load(graph, load_external_data=False)
    branch = helper.make_graph([], "branch", [], [])
    made.graph.node.append(helper.make_node("If", ["\x1b[2J"], [], then_branch=branch, else_branch=branch))
    graph.write_bytes(made.SerializeToString())
    command = [sys.executable, "-m", "mbexport", "validate", str(graph), "--against", str(example_bundle)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("mbexport: error: ")
    assert line.isprintable()
