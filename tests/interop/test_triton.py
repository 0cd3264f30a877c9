"""Repositories on Triton itself; `make interop` makes its environment.

Triton's server and Python backend come from NVIDIA's wheel nvidia-pytriton, which has no other backend. So token
ids go to a model that this test writes, with the packaged graph, shapes and types, on the Python backend, too.
Where TRITON_ONNXRUNTIME names a folder with a `libtriton_onnxruntime.so` for that release, as triton_onnxruntime.mk
builds it, the packaged model runs as it is, and its config is Triton's own to judge.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbexport import package
from mbexport.runtime import load
from tests.packages import LONG, TASKS, assert_same, expected, export_task, given

pytestmark = pytest.mark.interop
ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-triton" / "bin" / "python"
ONNX_RUNTIME = os.environ.get("TRITON_ONNXRUNTIME") or None
PATIENCE = 120.0  # seconds until a server is up
SUBSTITUTE = """
import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self.outputs = [item["name"] for item in config["output"]]
        self.inputs = [item["name"] for item in config["input"]]
        graph = next(path for path in folder.glob("*.onnx"))
        self.session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.run(request) for request in requests]

    def run(self, request):
        given = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
        values = self.session.run(self.outputs, given)
        return pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in zip(self.outputs, values)])
"""


class Server:
    """A running Triton, asked over HTTP."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    def ask(self, model: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """HTTP status and JSON of an inference."""
        status, content = self.send("POST", f"models/{model}/infer", json.dumps(body).encode())
        return status, json.loads(content)

    def get(self, path: str) -> Any:
        status, content = self.send("GET", path)
        assert status == 200, content
        return json.loads(content)

    def send(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request(method, f"/v2/{path}", body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return response.status, response.read()

    def ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.send("GET", "health/ready")[0] == 200
        return False


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Triton's folder, with the Python backend for the Python of its environment."""
    find = (
        "import sys; from importlib.util import find_spec; "
        "print(*find_spec('pytriton').submodule_search_locations, '%d.%d' % sys.version_info[:2])"
    )
    found = subprocess.run([PYTHON, "-c", find], capture_output=True, text=True, check=True)
    package_folder, version = found.stdout.split()
    source = Path(package_folder) / "tritonserver"
    folder = tmp_path_factory.mktemp("triton")
    shutil.copytree(source / "backends", folder / "backends")
    shutil.copy(
        source / "python_backend_stubs" / version / "triton_python_backend_stub", folder / "backends" / "python"
    )
    (folder / "bin").symlink_to(source / "bin")
    (folder / "lib").symlink_to(Path(package_folder).parent / "nvidia_pytriton.libs")
    if ONNX_RUNTIME:
        shutil.copytree(ONNX_RUNTIME, folder / "backends" / "onnxruntime")
    return folder


@pytest.fixture(scope="module")
def serve(triton: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Server]]:
    """Starts Triton with a repository; all that were started end with the module."""
    started: list[subprocess.Popen[bytes]] = []

    def start(repository: Path) -> Server:
        ports = [_free_port() for _ in range(3)]
        libraries = [triton / "lib", triton / "backends" / "onnxruntime"]
        environment = os.environ | {
            "PATH": f"{PYTHON.parent}:{os.environ['PATH']}", "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        }  # fmt: skip
        log = tmp_path_factory.mktemp("log") / "server.log"
        names = ("--http-port", "--grpc-port", "--metrics-port")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [triton / "bin" / "tritonserver", "--model-repository", repository,
                 "--backend-directory", triton / "backends", "--exit-timeout-secs", "5", "--http-address", "127.0.0.1",
                 *(part for pair in zip(names, map(str, ports), strict=True) for part in pair)],
                stdout=stream, stderr=stream, env=environment,
            )  # fmt: skip
        started.append(process)
        server = Server(process, ports[0], log)
        end = time.monotonic() + PATIENCE
        while not server.ready():
            assert process.poll() is None, log.read_text()[-20000:]
            assert time.monotonic() < end, log.read_text()[-20000:]
            time.sleep(0.2)
        return server

    yield start
    for process in started:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def packaged(bundle: Path, target: Path, name: str, **changes: str) -> None:
    """Add a bundle's models to a repository, the graph's on the Python backend where Triton has no ONNX Runtime."""
    package(bundle, target.parent / f"{name}-alone", name=name)
    for model in (name, f"{name}_model"):
        shutil.copytree(target.parent / f"{name}-alone" / model, target / model)
    config = target / name / "config.pbtxt"
    for old, new in changes.items():
        assert f"{old}: " in config.read_text()
        lines = [f"{line.split(':')[0]}: {new}" if line.strip().startswith(f"{old}:") else line
                 for line in config.read_text().splitlines()]  # fmt: skip
        config.write_text("\n".join(lines))
    if ONNX_RUNTIME is None:
        config = target / f"{name}_model" / "config.pbtxt"
        text = config.read_text().replace('backend: "onnxruntime"', 'backend: "python"')
        config.write_text("\n".join(line for line in text.splitlines() if "default_model_filename" not in line))
        (target / f"{name}_model" / "1" / "model.py").write_text(SUBSTITUTE)


def body(inputs: dict[str, list[list[str]]], parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    tensors = [
        {"name": name, "datatype": "BYTES", "shape": [len(rows), len(rows[0])], "data": list(chain.from_iterable(rows))}
        for name, rows in inputs.items()
    ]
    return {"inputs": tensors} | ({"parameters": parameters} if parameters else {})


def outputs_of(answer: dict[str, Any]) -> dict[str, np.ndarray]:
    assert "outputs" in answer, answer
    return {item["name"]: np.array(item["data"]).reshape(item["shape"]) for item in answer["outputs"]}


def request_of(name: str, items: list[Any]) -> dict[str, Any]:
    task = TASKS[name]
    if task.second is None:
        return body({"TEXT": [[item] for item in items]}, task.parameters)
    seconds = [part if isinstance(part, list) else [part] for _, part in items]
    return body({"TEXT": [[item[0]] for item in items], task.second: seconds}, task.parameters)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: export_task(name, tmp_path_factory.mktemp(name)) for name in TASKS}


@pytest.fixture(scope="module")
def server(
    serve: Callable[[Path], Server], bundles: dict[str, Path], example_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Server:  # fmt: skip
    """All tasks, and the trained example as `news`, in one server."""
    repository = tmp_path_factory.mktemp("all") / "repository"
    for name, bundle in bundles.items():
        packaged(bundle, repository, name)
    packaged(example_bundle, repository, "news")
    # Half a second to gather requests, so that they do stand in one batch.
    packaged(example_bundle, repository, "slow", max_queue_delay_microseconds="500000", count="1")
    packaged(example_bundle, repository, "short", max_queue_size="1", max_batch_size="1", count="1")
    return serve(repository)


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_those_of_the_runtime(name: str, server: Server, bundles: dict[str, Path]) -> None:
    task = TASKS[name]
    wanted = expected(load(bundles[name], device="cpu"), task, task.items)
    with ThreadPoolExecutor(len(task.items)) as clients:
        answers = list(clients.map(lambda item: server.ask(name, request_of(name, [item])), task.items))
    for (status, answer), right in zip(answers, wanted, strict=True):
        assert status == 200, answer
        assert_same(given(outputs_of(answer)), [right])
    if name != "choices":
        assert_same(given(outputs_of(server.ask(name, request_of(name, task.items))[1])), wanted)


def test_requests_are_joined_and_one_that_is_wrong_harms_no_other(server: Server) -> None:
    before = server.get("models/slow/stats")["model_stats"][0]
    requests = [request_of("classifier", [f"The striker scored {n} goals."]) for n in range(12)]
    requests[3]["parameters"] = {"prompt": "none"}
    with ThreadPoolExecutor(len(requests)) as clients:
        answers = list(clients.map(lambda request: server.ask("slow", request), requests))
    assert [status for status, _ in answers] == [200, 200, 200, 400, *[200] * 8]
    assert answers[3][1]["error"] == "this model takes no parameter 'prompt'; it takes none"
    after = server.get("models/slow/stats")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] >= 11
    assert after["execution_count"] - before["execution_count"] < 12


def test_what_is_wrong_is_http_400(server: Server) -> None:
    for name, request, message in (
        ("masks", request_of("masks", ["no mask"]), "text 0 has no [MASK]"),
        ("sentences", body({"TEXT": [["x"]]}, {"prompt_name": "passage"}), "there is no prompt 'passage'"),
        ("sentences", body({"TEXT": [["x"]]}, {"truncate_dim": 0}), "truncate_dim is 0"),
        ("spans", body({"TEXT": [["x"]]}), "PAIR"),
        ("news", body({"TEXT": [["x"]] * 65}), "64"),
        ("news", body({"OTHER": [["x"]]}), "OTHER"),
    ):
        status, answer = server.ask(name, request)
        assert status == 400, (name, answer)
        assert message in answer["error"]


def test_bytes_that_are_no_text(server: Server) -> None:
    data = b"\xff\xfe"
    head = json.dumps({
        "inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": 6}}]
    }).encode()  # fmt: skip
    content = head + len(data).to_bytes(4, "little") + data
    status, answer = server.send(
        "POST", "models/news/infer", content, Inference_Header_Content_Length=str(len(head))
    )  # fmt: skip
    assert status == 400
    assert "TEXT is not UTF-8" in answer.decode()


def test_what_waits_beyond_the_limit_is_refused_and_the_rest_answered(server: Server) -> None:
    request = request_of("classifier", [LONG * 20])
    with ThreadPoolExecutor(24) as clients:
        answers = list(clients.map(lambda _: server.ask("short", request), range(24)))
    refused = [answer for status, answer in answers if status != 200]
    assert 0 < len(refused) < 24
    assert {status for status, _ in answers} == {200, 503}
    assert all("maximum queue size" in answer["error"] for answer in refused)
    assert server.ask("short", request_of("classifier", ["The striker scored."]))[0] == 200


def test_token_ids_are_taken_too(server: Server, example_bundle: Path) -> None:
    model = load(example_bundle, device="cpu")
    text = "The central bank raised its main interest rate."
    (prepared,) = model.prepare([text])
    ids = prepared.parts[0].ids
    tensor = {"datatype": "INT64", "shape": [1, len(ids)]}
    status, answer = server.ask("news_model", {"inputs": [
        tensor | {"name": "input_ids", "data": ids.tolist()},
        tensor | {"name": "attention_mask", "data": [1] * len(ids)},
    ]})  # fmt: skip
    assert status == 200
    assert_same(outputs_of(answer)["logits"].astype(np.float32), model.logits([text]))


@pytest.mark.parametrize("name", [*TASKS, "news"])
def test_configs_are_as_triton_completes_them(name: str, server: Server) -> None:
    """Triton fills in what a config leaves open; of what it says nothing is changed."""
    config = server.get(f"models/{name}_model/config")
    assert config["max_batch_size"] == (0 if name == "masks" else 64)
    assert len(config["model_warmup"]) == 3
    assert config["instance_group"][0]["kind"] == "KIND_CPU"
    texts = server.get(f"models/{name}/config")
    assert texts["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 512
    assert texts["backend"] == "python"


def test_a_damaged_config_is_refused_by_triton(
    serve: Callable[[Path], Server], example_bundle: Path, tmp_path: Path
) -> None:
    """The control: were anything loaded, none of the tests above would say much."""
    packaged(example_bundle, tmp_path / "repository", "news")
    config = tmp_path / "repository" / "news_model" / "config.pbtxt"
    warm_up = config.read_text().replace("dims: [16]", "dims: [17]")
    assert warm_up != config.read_text()
    config.write_text(warm_up)
    with pytest.raises(AssertionError, match="ones_16"):
        serve(tmp_path / "repository")
