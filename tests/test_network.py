"""Nothing of mbexport's asks for the network: every command, run with it refused and watched."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.checkpoints import EXAMPLE, copy_example
from tests.network.watch import cannot_watch, run_watched, watched

ROOT = Path(__file__).parent.parent
PATIENCE = 120.0  # seconds
ONNX_RUNTIME = tuple(map(int, version("onnxruntime").split(".")[:2]))
COMMAND = (sys.executable, "-m", "mbexport")
# 192.0.2.0/24 is kept for documentation: nobody has these addresses.
IN_PYTHON = "import socket; socket.create_connection(('192.0.2.1', 80))"
LOOKS_UP = "import socket; socket.getaddrinfo('example.invalid', 80)"
NATIVE = """
import ctypes
libc = ctypes.CDLL(None)
four = (2).to_bytes(2, "little") + (443).to_bytes(2, "big") + bytes([192, 0, 2, 7]) + bytes(8)
six = (10).to_bytes(2, "little") + (443).to_bytes(2, "big") + bytes(4) + bytes([32, 1, 13, 184]) + bytes(12 + 4)
print(libc.connect(libc.socket(2, 1, 0), four, 16))
print(libc.connect(libc.socket(10, 1, 0), six, 28))
print(libc.sendto(libc.socket(2, 2, 0), b"x", 1, 0, four, 16))
"""
RUNTIME = """
import sys
from mbexport.runtime import Batcher, load
model = load("bundle")
with Batcher(model) as batcher:
    print(batcher.submit("The striker scored twice.").result()["label"], model(["Shares fell."])[0]["label"])
print({"socket", "ssl", "huggingface_hub"} & set(sys.modules))
"""

pytestmark = pytest.mark.skipif(bool(cannot_watch()), reason=cannot_watch() or "it can be watched")


@pytest.fixture
def folder(example_bundle: Path, tmp_path: Path) -> Path:
    """Where commands run: a bundle, texts, and an empty home."""
    shutil.copytree(example_bundle, tmp_path / "bundle")
    subjects = ("The striker scored", "Shares of the bank fell", "The phone has a new chip", "Ministers met in Geneva")
    (tmp_path / "texts.txt").write_text("".join(f"{subject} {n} times.\n" for n in range(4) for subject in subjects))
    (tmp_path / "home").mkdir()
    return tmp_path


def run(
    folder: Path, *command: object, env: dict[str, str] | None = None
) -> tuple[subprocess.CompletedProcess[str], str]:
    """A program in the folder, and what it and its children asked of the network or left in the home folder."""
    home = folder / "home"
    settings = {"cwd": folder, "env": {"HOME": str(home)} | (env or {})}
    result, attempts = run_watched([*map(str, command)], folder / "noted", **settings)
    left = "".join(f"\nleft {path.relative_to(home)}" for path in sorted(home.rglob("*")) if path.is_file())
    return result, attempts + left


@pytest.mark.parametrize(
    ("script", "seen"),
    [
        (IN_PYTHON, ["socket.connect ('192.0.2.1', 80)"]),
        (LOOKS_UP, ["socket.getaddrinfo 'example.invalid'"]),
        (NATIVE, ["connect 192.0.2.7 port 443", "connect 2001:db8:: port 443", "sendto 192.0.2.7 port 443"]),
    ],
    ids=["Python", "name", "native"],
)
def test_a_call_of_a_child_is_seen(script: str, seen: list[str], folder: Path) -> None:
    """The control."""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}])"
    _, attempts = run(folder, sys.executable, "-c", parent)
    lines = attempts.splitlines()
    assert len(lines) >= len(seen)
    assert all(any(line.startswith(one) for line in lines) for one in seen), attempts


def test_what_stays_on_the_machine_goes_on(folder: Path) -> None:
    """The other control: a pipe of AF_UNIX works, and is no attempt."""
    script = "import socket; a, b = socket.socketpair(); a.sendmsg([b'x']); print(b.recv(1))"
    result, attempts = run(folder, sys.executable, "-c", script)
    assert (result.stdout, attempts) == ("b'x'\n", "")


def test_onnx_runtime_alone_would_report(folder: Path) -> None:
    """The control of the empty home: it sends after seconds only, but numbers the machine at once."""
    if ONNX_RUNTIME < (1, 29):
        pytest.skip("ONNX Runtime reports from 1.29 on")
    _, attempts = run(folder, sys.executable, "-c", "import onnxruntime", env={"ORT_DISABLE_TELEMETRY": "0"})
    assert "deviceid" in attempts


def test_openvino_alone_would_report(folder: Path) -> None:
    """The control of bench's worker."""
    _, attempts = run(folder, sys.executable, "-c", "import openvino")
    assert "socket.getaddrinfo" in attempts


@pytest.mark.parametrize(
    "arguments",
    [
        ["onnx", EXAMPLE, "-o", "other"],
        ["predict", "bundle", "--file", "texts.txt"],
        ["inspect", "bundle", "--verify"],
        ["prepack", "bundle"],
        ["package", "bundle", "--format", "triton", "-o", "models"],
        ["int8", "bundle", "--calibration", "texts.txt"],
        ["trt", "bundle", "--gpu", "rtx4090", "--profile", "1x16:1x16:1x16"],
        ["bench", "bundle", "--shapes", "1x16", "--rounds", "1", "--against", "onnxruntime", "--against", "openvino"],
        ["validate", "bundle", "--checkpoint", EXAMPLE, "--max-length", "70", "--report", "report"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands(arguments: list[object], folder: Path) -> None:
    if arguments[0] == "validate":
        pytest.importorskip("torch")
    if arguments[0] == "int8" and ONNX_RUNTIME < (1, 24):
        pytest.skip("calibration needs ONNX Runtime 1.24")
    result, attempts = run(folder, *COMMAND, *arguments)
    assert result.returncode == 0, result.stderr
    assert attempts == ""


def test_runtime(folder: Path) -> None:
    result, attempts = run(folder, sys.executable, "-c", RUNTIME)
    assert (result.stdout, result.stderr, attempts) == ("sports business\nset()\n", "", "")


def test_service_only_answers(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MBEXPORT_LISTEN": f"127.0.0.1:{port}", "MBEXPORT_BUNDLE": str(folder / "bundle")}
    settings = {"cwd": ROOT, "env": place | {"HOME": str(folder / "home")}, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "examples.service"]
    with watched(command, folder / "noted", **settings) as (process, attempts):
        body = json.dumps({"inputs": ["The striker scored twice."]}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, {"content-type": "application/json"})
        end = time.monotonic() + PATIENCE
        while True:
            try:
                answer = json.load(urllib.request.urlopen(request, timeout=PATIENCE))
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
        assert answer["predictions"][0]["label"] == "sports"
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert attempts == []
    assert not (folder / "noted").exists()
    assert list((folder / "home").iterdir()) == []


def test_a_base_model_on_a_hub_is_not_fetched(folder: Path) -> None:
    adapter = copy_example(folder / "adapter")
    settings = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "someone/on-a-hub"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    result, attempts = run(folder, *COMMAND, "onnx", "adapter", "-o", "other")
    assert (result.returncode, attempts) == (2, "")
    assert "'someone/on-a-hub', which is no directory here; give it: --base" in result.stderr


@pytest.mark.slow
def test_a_peer_s_base_model_on_a_hub_is_not_fetched(folder: Path) -> None:
    """A whole checkpoint that is an adapter's folder, too: transformers takes note of both."""
    settings = {"peft_type": "LORA", "task_type": "SEQ_CLS", "base_model_name_or_path": "someone/on-a-hub"}
    (copy_example(folder / "adapter") / "adapter_config.json").write_text(json.dumps(settings))
    command = ["bench", "bundle", "--shapes", "1x16", "--rounds", 1, "--against", "torch-sdpa=adapter"]
    assert run(folder, *COMMAND, *command)[1] == ""


@pytest.mark.slow
def test_sentence_transformers_fetches_nothing(folder: Path) -> None:
    """The reference of a sentence pipeline, whose loader looks for missing parts on the hub unless told not to."""
    from tests.parity.test_sentences import PIPELINES, save_pipeline

    pipeline = save_pipeline(folder, *PIPELINES["dense"]())
    for command in (["onnx", pipeline, "-o", "vectors"], ["validate", "vectors", "--checkpoint", pipeline]):
        result, attempts = run(folder, *COMMAND, *command)
        assert (result.returncode, attempts) == (0, ""), result.stderr
