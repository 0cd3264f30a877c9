"""`mbexport package`: configs by Triton's own schema, and the repository's model on a stand-in for Triton."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

from mbexport import manifest as manifests
from mbexport import package
from mbexport.bundle.packed import ensure_packed_graph
from mbexport.cli import main
from mbexport.errors import BackendError, BundleError, InputError
from mbexport.profiles import parse_profile
from mbexport.runtime import QualityWarning, load
from tests.gpu_standin import add_engine
from tests.int8 import add_int8
from tests.packages import LONG, TASKS, TEXTS, assert_same, expected, given, inputs_of
from tests.triton_standin import NUMPY, Request, Server, TritonError, read_config

SIZES = {"TYPE_INT64": 8, "TYPE_FP32": 4}
TYPES = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32"}


@pytest.fixture
def own(example_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(example_bundle, tmp_path / "own"))


def faults_of(repository: Path, graph: Path) -> list[str]:
    """What is wrong with a repository, by Triton's rules; ``graph`` has the inputs and outputs that are run."""
    faults = []
    configs = {path.parent.name: read_config(path.parent) for path in sorted(repository.glob("*/config.pbtxt"))}
    assert len(configs) == 2
    for name, config in configs.items():
        folder = repository / name
        if config.name not in ("", name):
            faults.append(f"{name}: the config says {config.name}")
        if not any(path.name.isdigit() and any(path.iterdir()) for path in folder.iterdir() if path.is_dir()):
            faults.append(f"{name}: no version")
        file = {"python": "model.py", "tensorrt": "model.plan"}.get(config.backend, config.default_model_filename)
        if not (folder / "1" / file).is_file():
            faults.append(f"{name}: no {file}")
        if config.HasField("dynamic_batching") and config.max_batch_size < 1:
            faults.append(f"{name}: it batches, and takes no batches")
        faults += [f"{name}: {fault}" for fault in _warm_up_faults(folder, config)]
    (text,) = (config for config in configs.values() if config.backend == "python")
    target = text.parameters["graph_model"].string_value
    if target not in configs or configs[target] is text:
        return [*faults, f"there is no model {target!r} to call"]
    return faults + _tensor_faults(configs[target], graph)


def _warm_up_faults(folder: Path, config: Any) -> list[str]:
    faults = []
    declared = {item.name: item for item in config.input}
    for sample in config.model_warmup:
        if set(sample.inputs) != set(declared) or (sample.batch_size > 0) != (config.max_batch_size > 0):
            faults.append(f"warm-up {sample.name} has other inputs or another batch")
            continue
        if sample.batch_size > config.max_batch_size:
            faults.append(f"warm-up {sample.name} is larger than a batch")
        for name, data in sample.inputs.items():
            kind, dims = DataType.Name(data.data_type), list(data.dims)
            wanted = list(declared[name].dims)
            fits = len(dims) == len(wanted) and all(want in (-1, n) for n, want in zip(dims, wanted, strict=True))
            if data.data_type != declared[name].data_type or not fits:
                faults.append(f"warm-up {sample.name}: {name} is {kind} {dims}")
            if data.WhichOneof("input_data_type") == "input_data_file":
                path = folder / "warmup" / data.input_data_file
                size = path.stat().st_size if path.is_file() else -1
                if size != SIZES[kind] * int(np.prod(dims)):
                    faults.append(f"warm-up {sample.name}: {path.name} has {size} bytes")
    return faults


def _tensor_faults(config: Any, graph: Path) -> list[str]:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    faults = []
    for declared, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        found = {item.name: (DataType.Name(item.data_type), list(item.dims)) for item in declared}
        first = 1 if config.max_batch_size else 0  # the batch axis is not declared
        wanted = {
            item.name: (TYPES[item.type], [n if isinstance(n, int) else -1 for n in item.shape[first:]])
            for item in real
        }
        if config.max_batch_size and any(item.shape[0] != "batch" for item in real):
            faults.append("an input has no batch axis, and the config takes batches")
        if found != wanted:
            faults.append(f"the config has {found}, the graph {wanted}")
    return faults


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("task", TASKS)
def test_configs_are_valid_and_fit_the_graph(
    task: str, device: str, bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    report = package(bundle_of(task), tmp_path / "repository", device=device, name="news.topics-2")
    graph = tmp_path / "repository" / "news.topics-2_model"
    config = read_config(graph)
    assert faults_of(tmp_path / "repository", graph / "1" / config.default_model_filename) == []
    assert config.instance_group[0].kind == ModelInstanceGroup.Kind.Value(f"KIND_{device.upper()}")
    fused = "model_ort_selected.onnx" if task == "masks" else "model_ort.onnx"
    assert config.default_model_filename == ("model.onnx" if device == "gpu" else fused)
    assert config.optimization.graph.level == (0 if device == "gpu" else 2)
    assert config.max_batch_size == (0 if task == "masks" and device == "cpu" else 64)
    assert {path.name for path in (graph / "1").iterdir()} == {config.default_model_filename, "model.onnx_data"}
    assert report.file == f"onnx/{config.default_model_filename}"
    queue = read_config(tmp_path / "repository" / "news.topics-2").dynamic_batching.default_queue_policy
    assert queue.max_queue_size > 0
    assert queue.timeout_action == queue.TimeoutAction.Value("REJECT")


BROKEN: dict[str, tuple[str, str, str]] = {  # file, what stands there, what takes its place
    "a type of data": ("modernbert_model", "data_type: TYPE_FP32", "data_type: TYPE_FP16"),
    "an axis": ("modernbert_model", "dims: [5]", "dims: [4]"),
    "a name": ("modernbert_model", 'name: "logits"', 'name: "logit"'),
    "batches of a model that takes none": ("modernbert_model", "max_batch_size: 64", "max_batch_size: 0"),
    "a warm-up's shape": ("modernbert_model", "dims: [16]", "dims: [17]"),
    "a warm-up's file": ("modernbert_model", '"ones_16"', '"ones_15"'),
    "a file": ("modernbert_model", "model_ort.onnx", "model.onnx"),
    "the model to call": ("modernbert", '"modernbert_model"', '"modernbert-model"'),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_broken_in_a_config_is_found(broken: str, own: Path, tmp_path: Path) -> None:
    """The control of the test above."""
    repository = tmp_path / "repository"
    package(own, repository)
    name, old, new = BROKEN[broken]
    path = repository / name / "config.pbtxt"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert faults_of(repository, own / "onnx" / "model_ort.onnx") != []


@pytest.mark.parametrize(
    ("old", "new"),
    [("max_batch_size", "max_batchsize"), ("TYPE_STRING", "TYPE_TEXT"), ("REJECT", "REFUSE"), ("count: 2", "count: x")],
)
def test_what_is_not_in_the_schema_is_refused(old: str, new: str, own: Path, tmp_path: Path) -> None:
    package(own, tmp_path / "repository")
    text = (tmp_path / "repository" / "modernbert" / "config.pbtxt").read_text()
    text_format.Parse(text, ModelConfig())
    assert old in text
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text.replace(old, new), ModelConfig())


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("task", TASKS)
def test_answers_are_those_of_the_runtime(
    task: str, device: str, bundle_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, bundle = TASKS[task], bundle_of(task)
    package(bundle, tmp_path / "repository", device=device)
    server = Server(tmp_path / "repository", monkeypatch)
    wanted = expected(load(bundle, device="cpu"), case, case.items)
    requests = [Request(parameters=case.parameters, **inputs_of(case, [item])) for item in case.items]
    responses = server.execute(*requests)  # joined by the server
    for response, answer in zip(responses, wanted, strict=True):
        assert_same(given(response), [answer])
    if task != "choices":  # whose rows would have to be of one length
        (response,) = server.execute(Request(parameters=case.parameters, **inputs_of(case, case.items)))
        assert_same(given(response), wanted)
    assert len(server.calls) < 2 * sum(len(item[1]) if task == "choices" else 1 for item in case.items)


def test_an_optional_input_may_stay_away(
    bundle_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(bundle_of("reranker"), tmp_path / "repository")
    server = Server(tmp_path / "repository", monkeypatch)
    alone, pair = server.execute(Request(TEXT=[[b"Who won?"]]), Request(TEXT=[[b"Who won?"]], PAIR=[[b"We."]]))
    model = load(bundle_of("reranker"))
    assert_same(given(alone) + given(pair), model(["Who won?", ("Who won?", "We.")]))


@pytest.fixture
def served(example_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    package(example_bundle, tmp_path / "repository")
    return Server(tmp_path / "repository", monkeypatch)


GOOD = Request(TEXT=[[b"The striker scored twice."]])


def assert_alone(server: Server, bad: Request, message: str, code: int = TritonError.INVALID_ARG) -> None:
    """The request is refused, and those before and after it are answered."""
    first, refused, last = server.execute(GOOD, bad, GOOD)
    assert given(first)[0]["label"] == given(last)[0]["label"] == "sports"
    assert isinstance(refused, TritonError)
    assert re.search(message, refused.message())
    assert refused.code() == code


def test_what_is_wrong_with_a_request_is_its_own_error(served: Server) -> None:
    assert_alone(served, Request(TEXT=[[b"\xff\xfe"]]), "TEXT is not UTF-8")
    assert_alone(served, Request(TEXT=[[b"good"], [b"\xed\xa0\x80"]]), "TEXT is not UTF-8")  # a lone surrogate
    assert_alone(served, Request(TEXT=[[b"one"], [b"two"]], PAIR=[[b"one"]]), "TEXT has 2 rows and PAIR 1")
    assert_alone(served, Request(TEXT=[[b"x"]], parameters={"prompt": "q"}), "takes no parameter 'prompt'; .* none")
    assert_alone(
        served, Request(TEXT=[[b"ok"], [b"x" * (250 * 8192 + 1)]]), "a text of 2048001 bytes, .* at most 2048000"
    )
    assert_alone(served, Request(cancelled=True, TEXT=[[b"x"]]), "cancelled", TritonError.CANCELLED)
    (own,) = served.execute(Request(TEXT=[[b"x"]], parameters={"triton_something": 1}))  # Triton's own
    assert "ANSWER" in own


def test_masks_and_prompts_that_there_are_not(
    bundle_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(bundle_of("masks"), tmp_path / "masks")
    server = Server(tmp_path / "masks", monkeypatch)
    good, bad = server.execute(Request(TEXT=[[b"A [MASK]."]]), Request(TEXT=[[b"no mask"]]))
    assert len(given(good)[0]) == 1
    assert "text 0 has no [MASK]" in bad.message()
    package(bundle_of("sentences"), tmp_path / "sentences")
    server = Server(tmp_path / "sentences", monkeypatch)
    rows = [[b"Who won?"]]
    answers = server.execute(
        Request(TEXT=rows), Request(TEXT=rows, parameters={"prompt_name": "passage"}),
        Request(TEXT=rows, parameters={"truncate_dim": 0}), Request(TEXT=rows, parameters={"truncate_dim": "8"}),
        Request(TEXT=rows, parameters={"prompt_name": ["query"]}),
        Request(TEXT=rows, parameters={"truncate_dim": True}),
        Request(TEXT=rows, parameters={"truncate_dim": 8}),
    )  # fmt: skip
    assert answers[0]["EMBEDDING"].shape == (1, 64)
    assert "there is no prompt 'passage'; the model has document, query" in answers[1].message()
    assert all(isinstance(answer, TritonError) and answer.code() == TritonError.INVALID_ARG for answer in answers[1:-1])
    assert answers[-1]["EMBEDDING"].shape == (1, 8)


def test_a_pass_that_fails_is_tried_again_for_each_request_alone(served: Server) -> None:
    served.fault = lambda ids: "out of memory" if len(ids) > 1 else None
    answers = served.execute(*[Request(TEXT=[[f"The striker scored {n}.".encode()]]) for n in range(4)])
    assert [given(answer)[0]["label"] for answer in answers] == ["sports"] * 4
    served.fault = lambda ids: "out of memory" if ids.shape[1] > 100 else None
    assert_alone(served, Request(TEXT=[[LONG.encode()]]), "modernbert_model: out of memory", TritonError.INTERNAL)
    served.fault = lambda _: "the device is lost"
    answers = served.execute(GOOD, GOOD)
    assert [answer.message() for answer in answers] == ["modernbert_model: the device is lost"] * 2
    served.fault = lambda _: None
    assert given(served.execute(GOOD)[0])[0]["label"] == "sports"  # and goes on


def test_the_model_to_call_may_not_be_loaded(served: Server) -> None:
    shutil.move(served.repository / "modernbert_model", served.repository.parent / "gone")
    (answer,) = served.execute(GOOD)
    assert "modernbert_model" in answer.message()
    assert answer.code() == TritonError.INTERNAL


def test_answers_that_are_not_finite_are_an_error(
    example_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(example_bundle, tmp_path / "repository")

    def broken(inputs: dict[str, np.ndarray], _: Any) -> dict[str, np.ndarray]:
        return {"logits": np.full((len(inputs["input_ids"]), 5), np.nan, np.float32)}

    (answer,) = Server(tmp_path / "repository", monkeypatch, graph=broken).execute(GOOD)
    assert answer.message().startswith("text 0: modernbert_model on Triton gives logits with NaN or infinity")
    assert answer.code() == TritonError.INTERNAL


def test_no_call_is_larger_than_the_other_model_takes(
    bundle_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(bundle_of("choices"), tmp_path / "repository")
    server = Server(tmp_path / "repository", monkeypatch)
    requests = [Request(TEXT=[[b"a"]], CHOICES=[[b"b"] * 40]) for _ in range(4)]
    assert [len(given(answer)[0]["scores"]) for answer in server.execute(*requests)] == [40] * 4
    assert max(texts for texts, _ in server.calls) == 64


PROFILES = {  # of an engine: batches that the other model may join, Triton's largest batch
    "1x1:8x128:32x512": 32,
    "1x1:1x128:1x512,1x1:8x128:32x512": 0,  # Triton's largest batch would exceed the first profile's
    "1x1:1x64:16x128,1x129:8x256:16x512": 16,
}


@pytest.mark.parametrize("profile", PROFILES)
def test_engines(profile: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = add_engine(own, profile, builder="tensorrt")
    report = package(own, tmp_path / "repository", engine=Path(engine.file).name)
    assert (report.backend, report.device, report.precision) == ("tensorrt", "gpu", "fp16")
    assert faults_of(tmp_path / "repository", own / "onnx" / "model.onnx") == []
    config = read_config(tmp_path / "repository" / "modernbert_model")
    profiles = [parse_profile(part) for part in profile.split(",")]
    assert list(config.instance_group[0].profile) == [str(n) for n in range(len(profiles))]
    assert config.max_batch_size == PROFILES[profile]
    for sample in config.model_warmup:
        dims = list(sample.inputs["input_ids"].dims)
        shape = (sample.batch_size, *dims) if sample.batch_size else tuple(dims)
        assert any(part.accepts(*shape) for part in profiles)
    assert {path.name for path in (tmp_path / "repository" / "modernbert_model" / "1").iterdir()} == {"model.plan"}

    session = onnxruntime.InferenceSession(str(own / "onnx" / "model.onnx"))

    def engine_runs(inputs: dict[str, np.ndarray], wanted: Any) -> dict[str, np.ndarray]:
        assert any(part.accepts(*inputs["input_ids"].shape) for part in profiles), inputs["input_ids"].shape
        return dict(zip(wanted, session.run(wanted, inputs), strict=True))

    server = Server(tmp_path / "repository", monkeypatch, graph=engine_runs)
    texts = [text for text in TEXTS if text] * 5
    wanted = load(own, device="cpu")(texts)
    answers = server.execute(*[Request(TEXT=[[text.encode()]]) for text in texts])
    assert_same([given(answer)[0] for answer in answers], wanted)
    too_long = Request(TEXT=[[(LONG * 20).encode()]])
    assert_alone(server, too_long, "the engine takes at most 512")


def test_shared_memory_holds_the_outputs_of_the_longest_text(
    bundle_of: Callable[[str], Path], example_bundle: Path, tmp_path: Path
) -> None:
    masks = Path(shutil.copytree(bundle_of("masks"), tmp_path / "masks"))
    raw = json.loads((masks / manifests.FILE_NAME).read_text())
    (masks / manifests.FILE_NAME).write_text(json.dumps(raw | {"max_length": 60_000}))
    package(masks, tmp_path / "gpu", device="gpu")  # 5,000 float32 a token
    assert "--shm-size=3g " in (tmp_path / "gpu" / "README.md").read_text()
    package(example_bundle, tmp_path / "news")
    assert "--shm-size=1g " in (tmp_path / "news" / "README.md").read_text()


def test_engines_that_triton_cannot_run(own: Path, tmp_path: Path) -> None:
    rtx = add_engine(own)
    with pytest.raises(InputError, match=r"was built by tensorrt-rtx, and Triton runs engines of TensorRT only; build"):
        package(own, tmp_path / "repository", engine=rtx.file)
    with pytest.raises(InputError, match=f"has no engine 't4-fp16.engine'; it has {rtx.file}"):
        package(own, tmp_path / "repository", engine="t4-fp16.engine")
    ensure_packed_graph(own, manifests.read(own).graphs[0])
    packed = add_engine(own, builder="tensorrt", packed=True)
    with pytest.raises(InputError, match=r"takes rows of several texts.*build it without --packed"):
        package(own, tmp_path / "repository", engine=packed.file)
    int8 = add_engine(own, builder="tensorrt", precision="int8")
    with pytest.warns(QualityWarning, match="quality is not known"):
        package(own, tmp_path / "repository", engine=int8.file)


def test_int8_on_every_cpu(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="no int8 graph that every CPU computes exactly; make it with mbexport int8"):
        package(own, tmp_path / "repository", precision="int8")
    add_int8(own, "model_int8.onnx", bits=8)
    add_int8(own, "model_int8_reduced.onnx", bits=7, gate="failed")
    with pytest.warns(
        QualityWarning, match=r"model_int8_reduced.onnx is used as asked for, and its quality gate failed"
    ):
        package(own, tmp_path / "repository", precision="int8")
    graph = own / "onnx" / "model_int8_reduced.onnx"
    assert faults_of(tmp_path / "repository", graph) == []
    (answer,) = Server(tmp_path / "repository", monkeypatch).execute(GOOD)
    assert given(answer)[0]["label"] == "sports"
    with pytest.raises(InputError, match="on a GPU int8 is for engines only"):
        package(own, tmp_path / "other", precision="int8", device="gpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "kserve"}, "format is 'kserve', expected one of triton"),
        ({"device": "tpu"}, "device is 'tpu', expected one of cpu, gpu"),
        ({"precision": "fp16"}, "precision is 'fp16', expected one of fp32, int8"),
        ({"precision": "int8", "engine": "e.engine"}, "an engine has its own"),
        ({"name": "../up"}, r"name is '\.\./up'"),
        ({"name": ".hidden"}, "name is"),
        ({"name": "a\n"}, "name is"),
        ({"name": ""}, "name is"),
        ({"name": "x" * 65}, "name is"),
    ],
)
def test_refused_choices(options: dict[str, str], message: str, example_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        package(example_bundle, tmp_path / "repository", **options)
    assert list(tmp_path.iterdir()) == []


def test_damaged_bundles_leave_nothing(own: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "repository"
    weights = own / "onnx" / "model.onnx_data"
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"model.onnx_data is not what the manifest says \(SHA-256\)"):
        package(own, target)
    weights.write_bytes(content[:-1])
    with pytest.raises(BundleError, match="copy the whole bundle"):
        package(own, target)
    content[1000] ^= 1
    weights.write_bytes(content)
    graph = own / "onnx" / "model_ort.onnx"
    authored = graph.read_bytes()
    graph.write_bytes(authored + b"\x00")
    with pytest.raises(BundleError, match=r"model_ort.onnx has the SHA-256 .* so it was changed"):
        package(own, target)
    graph.write_bytes(authored)
    (own / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="no usable tokenizer"):
        package(own, target)
    assert not (tmp_path / "out").exists()  # nor are folders left that were made for it


def test_a_graph_that_does_not_run_is_not_packaged(own: Path, tmp_path: Path) -> None:
    graph = own / "onnx" / "model_ort.onnx"
    graph.write_bytes(b"no graph, but model.onnx_data")
    raw = json.loads((own / manifests.FILE_NAME).read_text())
    from mbexport.files import sha256

    raw["graphs"][1]["sha256"] = sha256(graph)
    (own / manifests.FILE_NAME).write_text(json.dumps(raw))
    with pytest.raises(BackendError, match="does not run on ONNX Runtime"):
        package(own, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_place_that_is_taken(own: Path, tmp_path: Path) -> None:
    target = tmp_path / "repository"
    package(own, target)
    with pytest.raises(BundleError, match="exists; choose another place with -o, or replace it with --force"):
        package(own, target)
    (target / "modernbert" / "more").mkdir()
    package(own, target, name="other", force=True)
    assert sorted(path.name for path in target.iterdir() if path.is_dir()) == ["other", "other_model"]
    (target / "mbexport-package.json").unlink()
    with pytest.raises(BundleError, match="so it is no repository that mbexport package wrote"):
        package(own, target, force=True)
    for place in (own, own / "inside", own.parent):
        with pytest.raises(BundleError, match=r"exists|lie in one another"):
            package(own, place)
    assert (own / manifests.FILE_NAME).is_file()


def test_the_same_bundle_gives_the_same_bytes(own: Path, tmp_path: Path) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (tmp_path / "repository").rglob("*") if path.is_file()}

    package(own, tmp_path / "repository")
    first = files()
    package(own, tmp_path / "repository", force=True)
    assert files() == first


@pytest.mark.parametrize("task", TASKS)
def test_the_request_that_the_readme_shows_is_answered(
    task: str, bundle_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(bundle_of(task), tmp_path / "repository")
    readme = (tmp_path / "repository" / "README.md").read_text()
    match = re.search(r"models/modernbert/infer -d '(.*)'$", readme, re.MULTILINE)
    assert match is not None
    inputs = {}
    for tensor in json.loads(match[1])["inputs"]:
        assert (tensor["datatype"], NUMPY["TYPE_STRING"]) == ("BYTES", np.object_)
        texts = [text.encode() for text in tensor["data"]]
        inputs[tensor["name"]] = np.array(texts, np.object_).reshape(tensor["shape"])
    (answer,) = Server(tmp_path / "repository", monkeypatch).execute(Request(**inputs))
    assert len(given(answer)) == 1


def test_the_command(example_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "triton-models"
    command = ["package", str(example_bundle), "--format", "triton", "-o", str(target)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1:3] == [
        "texts       modernbert: Python backend, calls modernbert_model",
        "tokens      modernbert_model: onnx/model_ort.onnx, fp32, onnxruntime, cpu",
    ]
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 2
    assert re.fullmatch(r"mbexport: error: .* exists; .*\n", again.stderr)
    assert again.stdout == ""
    assert CliRunner().invoke(main, [*command, "--format", "x"]).exit_code == 2
    assert CliRunner().invoke(main, [*command, "--force", "-q"]).exit_code == 0
    missing = CliRunner().invoke(main, ["package", str(tmp_path / "no"), "-o", str(tmp_path / "x")])
    assert missing.exit_code == 2
    assert len(missing.stderr.splitlines()) == 1
