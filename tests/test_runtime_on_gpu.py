"""``load`` on a machine with a GPU, which tests/gpu_standin.py stands in for: the path of a text to its answer."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mbexport import export_onnx
from mbexport import manifest as manifests
from mbexport.bundle.half import ensure_half_graph
from mbexport.bundle.packed import ensure_packed_graph
from mbexport.driver import NoGpuError
from mbexport.errors import BackendError, BundleError, InputError, MissingExtraError
from mbexport.runtime import FallbackWarning, Model, QualityWarning, load
from mbexport.runtime import on_gpu as on_gpu_module
from mbexport.runtime.backends.contexts import MOST_GRAPHS
from mbexport.runtime.backends.ort import OnnxRuntimeBackend
from mbexport.runtime.backends.tensorrt import TensorRTBackend
from mbexport.runtime.cuda import Cuda
from tests.checkpoints import ENCODER, EXAMPLE, edit_config, save_checkpoint
from tests.gpu_standin import FakeEngine, Machine, Status, add_engine
from tests.int8 import add_entry, add_int8

TEXTS = [f"{start} {'more ' * n}" for n in (0, 3, 20, 90) for start in ("The striker scored.", "", "naïve 東京 🎉")]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def bundle(example_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(example_bundle, tmp_path / "copy"))


def on_gpu(bundle: Path, **options: Any) -> Model:
    """Loaded on the GPU, without a word of a step down."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load(bundle, device="cuda", **options)


def backend_of(model: Model) -> TensorRTBackend:
    backend = model._executor.all
    assert isinstance(backend, TensorRTBackend)
    return backend


PROFILES = [
    "1x1:8x128:32x2048",
    "4x64:8x128:32x2048",  # single texts and short ones are filled up
    "1x1:1x16:3x16,2x100:2x200:2x2048",  # long ones in pairs
]


@pytest.mark.parametrize("builder", ["tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize("profile", PROFILES)
def test_answers_equal_the_cpu(builder: str, profile: str, bundle: Path, machine: Machine) -> None:
    add_engine(bundle, profile, builder=builder)
    expected = load(bundle, device="cpu").logits(TEXTS)
    model = on_gpu(bundle)
    assert model.description.startswith("a100-fp16-0.engine on TensorRT")
    assert (model.device, load(bundle, device="cpu").device) == ("cuda", "cpu")
    for _ in range(5):  # captured and replayed, too
        assert np.abs(model.logits(TEXTS) - expected).max() <= 1e-5
    for number, text in enumerate(TEXTS):
        assert np.abs(model.logits([text]) - expected[number]).max() <= 1e-5
    assert np.abs(expected - expected[::-1]).max() > 1  # the control: answers of other texts
    del model
    gc.collect()
    assert machine.cuda.leaks() == {}


TASKS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "tokens": ({"architecture": "ModernBertForTokenClassification"}, TEXTS),
    "answers": ({"architecture": "ModernBertForQuestionAnswering", "num_labels": 2}, [("who", text) for text in TEXTS]),
    "choices": ({"architecture": "ModernBertForMultipleChoice"}, [("who", TEXTS[:3]), ("what", TEXTS[2:5])]),
    "masks": ({"architecture": "ModernBertForMaskedLM"}, [f"{text} [MASK] and [MASK]" for text in TEXTS]),
    "vectors": ({"architecture": ENCODER}, TEXTS),
}


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_answers_of_every_task_equal_the_cpu(task: str, packed: bool, tmp_path: Path) -> None:
    config, texts = TASKS[task]
    checkpoint = save_checkpoint(tmp_path / "checkpoint", vocab_size=5000, **config)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, checkpoint)
    bundle = tmp_path / "bundle"
    export_onnx(checkpoint, bundle, packed=packed)
    add_engine(bundle, "2x8:8x128:32x2048", packed=packed)
    flat = outputs_of(load(bundle, device="cpu"), task, texts)
    found = outputs_of(on_gpu(bundle), task, texts)
    assert len(flat) == len(found) > 0
    for own, other in zip(flat, found, strict=True):
        assert own.keys() == other.keys()
        for name, values in own.items():
            assert values.shape == other[name].shape
            assert np.abs(values - other[name]).max() <= 1e-4 * np.abs(values).max()


@pytest.mark.parametrize("profile", PROFILES)
def test_packed_rows_answer_as_the_cpu_in_fewer_rows(profile: str, bundle: Path, machine: Machine) -> None:
    ensure_packed_graph(bundle, manifests.read(bundle).graphs[0])
    add_engine(bundle, profile)
    add_engine(bundle, profile, packed=True)
    expected = load(bundle, device="cpu").logits(TEXTS)
    model = on_gpu(bundle)
    assert model.description.startswith("a100-fp16-1.engine")  # of two engines the packed one
    before = len(machine.rtx.engines[0].passes)
    assert np.abs(model.logits(TEXTS) - expected).max() <= 1e-5
    rows = sum(rows for rows, _ in machine.rtx.engines[0].passes[before:])
    assert rows < len(TEXTS)
    for number, text in enumerate(TEXTS):
        assert np.abs(model.logits([text]) - expected[number]).max() <= 1e-5
    assert load(bundle, device="cpu").description.startswith("model_ort.onnx")  # packed graphs are for GPUs


def outputs_of(model: Model, task: str, texts: list[Any]) -> list[dict[str, np.ndarray]]:
    model(texts)
    return model.outputs([(text, part) for text, parts in texts for part in parts] if task == "choices" else texts)


def test_only_rows_of_masks_are_copied_from_the_gpu(tmp_path: Path, machine: Machine) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", vocab_size=5000, architecture="ModernBertForMaskedLM")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, checkpoint)
    export_onnx(checkpoint, tmp_path / "bundle")
    add_engine(tmp_path / "bundle")
    model = on_gpu(tmp_path / "bundle")
    before = machine.cuda.calls.count("cudaMemcpyAsync")
    model(["[MASK] " + "more " * 50 + "[MASK]"])
    assert machine.cuda.calls.count("cudaMemcpyAsync") - before == 2 + 2  # inputs, masks


def test_cuda_graphs_of_repeated_shapes(bundle: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbexport.runtime.shapes.STEP", 16)  # buffers that grow with each longer text
    add_engine(bundle, builder="tensorrt")
    model = on_gpu(bundle)
    engine, cuda = machine.trt.engines[0], machine.cuda
    passes = [len(engine.passes)]
    expected = load(bundle, device="cpu").logits(["some text"])
    for _ in range(6):
        assert np.abs(model.logits(["some text"]) - expected).max() <= 1e-5
        passes.append(len(engine.passes))
    # The third is run and then captured; the others are replays of it.
    assert np.diff(passes).tolist() == [1, 1, 2, 0, 0, 0]
    assert cuda.calls.count("cudaGraphLaunch") == 3
    model.outputs_of_tokens([np.full(200, 7)])  # buffers grow: the graph holds old addresses
    assert len(cuda.executables) == 0
    for length in range(8, 8 * (MOST_GRAPHS + 3), 8):
        for _ in range(3):
            model.outputs_of_tokens([np.full(length, 7)])
    assert len(cuda.executables) == MOST_GRAPHS
    contexts = engine.contexts
    model.outputs_of_tokens([np.full(8, 7)])  # its graph was dropped, and it is counted anew
    assert engine.contexts == contexts
    assert np.abs(model.logits(["some text"]) - expected).max() <= 1e-5


def test_a_graph_that_may_still_run_is_waited_for(bundle: Path, machine: Machine) -> None:
    """``Contexts`` promises it whatever its caller has waited for: here, for nothing since the launch."""
    add_engine(bundle, builder="tensorrt")
    model = on_gpu(bundle)
    contexts = backend_of(model)._session._contexts
    for _ in range(3):
        model.logits(["some text"])
    ((fit, graph),) = contexts._graphs.items()
    contexts.run(fit, {}, {})  # a replay takes shapes and addresses from the graph
    with pytest.raises(AssertionError, match="destroyed while it may still run"):  # the control
        machine.cuda.cudaGraphExecDestroy(graph.executable)
    contexts.forget_graphs()
    assert len(machine.cuda.executables) == 0


@pytest.mark.usefixtures("machine")
def test_the_stand_in_finds_faults(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbexport.runtime.shapes.STEP", 16)
    add_engine(bundle, builder="tensorrt")
    model = on_gpu(bundle)
    expected = [model.logits([text]) for text in TEXTS[:4]]
    monkeypatch.setattr("mbexport.runtime.cuda.Cuda.synchronize", lambda *_: None)
    assert np.abs(model.logits(TEXTS[:1]) - expected[0]).max() > 0.1  # what was there before
    monkeypatch.undo()
    Machine(monkeypatch)
    monkeypatch.setattr("mbexport.runtime.shapes.STEP", 16)
    model = on_gpu(bundle)
    for _ in range(3):
        model.logits(TEXTS[:1])
    monkeypatch.setattr("mbexport.runtime.backends.contexts.Contexts.forget_graphs", lambda _: None)
    with pytest.raises(AssertionError, match="held by a graph"):
        model.logits(["longer " * 100])
    monkeypatch.undo()


def test_tensorrt_rtx_captures_by_itself(bundle: Path, machine: Machine) -> None:
    add_engine(bundle)
    model = on_gpu(bundle)
    for _ in range(5):
        model.logits(["some text"])
    assert machine.rtx.engines[0].config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert "cudaStreamBeginCapture" not in machine.cuda.calls


def test_a_capture_that_fails_is_said_once(bundle: Path, machine: Machine) -> None:
    add_engine(bundle, builder="tensorrt")
    model = on_gpu(bundle)
    machine.cuda.fail["cudaGraphInstantiate"] = Status.cudaErrorStreamCaptureInvalidated
    with pytest.warns(FallbackWarning, match=r"no more CUDA graphs.*cudaErrorStreamCaptureInvalidated") as said:
        answers = [model.logits(["some text"]) for _ in range(6)]
    assert len(said) == 1
    assert all((answer == answers[0]).all() for answer in answers)
    del model
    gc.collect()
    assert machine.cuda.leaks() == {}


@pytest.mark.usefixtures("machine")
def test_no_memory_for_a_graphs_context(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_engine(bundle, builder="tensorrt")
    model = on_gpu(bundle)
    expected = model.logits(["some text"])
    monkeypatch.setattr(FakeEngine, "create_execution_context", lambda *_, **__: None)
    with pytest.warns(FallbackWarning, match="no more CUDA graphs.*could not create an execution context") as said:
        assert all((model.logits(["some text"]) == expected).all() for _ in range(5))
    assert len(said) == 1


@pytest.mark.usefixtures("machine")
def test_many_threads(bundle: Path) -> None:
    add_engine(bundle, builder="tensorrt")
    model = on_gpu(bundle)
    alone = model.logits(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for together in pool.map(model.logits, [TEXTS] * 12):
            assert np.abs(together - alone).max() <= 1e-5


def test_a_text_too_long_for_the_engine_is_refused_before_anything_runs(bundle: Path, machine: Machine) -> None:
    add_engine(bundle, "1x1:8x64:8x64")
    model = on_gpu(bundle)
    passes = len(machine.rtx.engines[0].passes)
    with pytest.raises(InputError, match=r"has 65 tokens, the engine takes at most 64 \(profiles 1x1:8x64:8x64\)"):
        model.outputs_of_tokens([np.full(10, 7), np.full(65, 7)])
    assert len(machine.rtx.engines[0].passes) == passes
    with pytest.raises(BackendError, match="no profile takes a batch of 9x64"):
        backend_of(model).run(np.ones((9, 64), np.int64), np.ones((9, 64), np.int64))


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "has .* bytes, the manifest says"),
        (lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), "so it is not loaded"),
        (lambda path: path.unlink(), "has 0 bytes"),
    ],
)
def test_an_engine_that_is_not_the_manifests_is_never_loaded(
    damage: Damage, message: str, bundle: Path, machine: Machine
) -> None:
    engine = add_engine(bundle)
    damage(bundle / engine.file)
    for device in ("cuda", "auto"):
        with pytest.raises(BundleError, match=message):
            load(bundle, device=device)
    assert machine.rtx.engines == []
    load(bundle, device="cpu")


def test_the_cpu_or_another_engine_is_used_and_said(bundle: Path, machine: Machine) -> None:
    add_engine(bundle, refuses=True)
    with pytest.warns(FallbackWarning, match=r"THE CPU IS USED.*fp16-0\.engine.*the stand-in refuses.*has no CUDA"):
        model = load(bundle)
    assert model.description.endswith("CPUExecutionProvider")
    gc.collect()
    assert machine.cuda.leaks() == {}
    add_engine(bundle, "1x1:1x8:1x16")
    with pytest.warns(FallbackWarning, match=r"fp16-1\.engine on TensorRT-RTX 1\.7\.1\.116 is used; .*refuses"):
        load(bundle)


def test_a_trial_that_fails_gives_back_its_memory_at_once(
    bundle: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the last reference goes: a traceback that somebody keeps holds one."""
    tried: list[TensorRTBackend] = []
    left: list[dict[str, int]] = []

    def trial(backend: TensorRTBackend, manifest: Any) -> None:
        left.append(machine.cuda.leaks())
        tried.append(backend)
        run_once(backend, manifest)

    run_once = on_gpu_module.run_once
    monkeypatch.setattr(on_gpu_module, "run_once", trial)
    add_engine(bundle, refuses=True)
    add_engine(bundle, "1x1:1x8:1x16")
    with pytest.warns(FallbackWarning, match=r"fp16-1\.engine on TensorRT-RTX 1\.7\.1\.116 is used"):
        model = load(bundle)
    assert len(tried) == 2
    assert left[0] == left[1] != {}  # the second engine had the GPU to itself
    with pytest.raises(BackendError, match="was closed"):
        tried[0].run(np.ones((1, 1), np.int64), np.ones((1, 1), np.int64))
    assert len(model(["some text"])) == 1


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"compute_capability": "8.9", "gpu": "rtx4090"}, "is for rtx4090, compute capability 8.9; Stand-in A100 has"),
        ({"builder_version": "1.6.0.10"}, "was built by tensorrt-rtx 1.6.0.10, here is 1.7.1.116"),
        ({"precision": "int8"}, "is not known, so it is taken only where asked for: precision='int8'"),
        ({"builder": "tensorrt", "builder_version": "11.0.0.1"}, "was built by tensorrt 11.0.0.1, here is 10.13"),
    ],
)
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_why_an_engine_does_not_fit(
    device: str, entry: dict[str, str], reason: str, bundle: Path, machine: Machine
) -> None:
    add_engine(bundle, **entry)
    with pytest.warns(FallbackWarning) as said:
        model = load(bundle, device=device)
    assert len(said) == 1
    assert reason in str(said[0].message)
    assert "THE CPU IS USED" in str(said[0].message)
    assert said[0].filename == __file__
    assert model.device == "cpu"  # what a service that must not run there asks
    assert machine.cuda.calls == []  # told from the manifest, before CUDA is touched
    assert len(model(TEXTS)) == len(TEXTS)


def add_int8_engine(bundle: Path, gate: str | None) -> None:
    graph = add_entry(bundle, "int8", gate)
    add_engine(bundle, precision="int8", graph=graph.file, graph_sha256=graph.sha256)


@pytest.mark.usefixtures("machine")
def test_an_int8_engine_is_taken_where_the_gate_of_its_graph_passed(bundle: Path) -> None:
    add_engine(bundle)
    add_int8_engine(bundle, "passed")
    for precision in ("auto", "int8"):
        assert on_gpu(bundle, precision=precision).description.startswith("a100-fp16-1.engine")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("gate", "why"), [("failed", "quality gate failed"), (None, "quality was not measured")])
def test_an_int8_engine_without_a_passed_gate_is_taken_by_name_and_said(
    gate: str | None, why: str, bundle: Path
) -> None:
    add_engine(bundle)
    add_int8_engine(bundle, gate)
    assert on_gpu(bundle).description.startswith("a100-fp16-0.engine")
    with pytest.warns(QualityWarning, match=rf"a100-fp16-1\.engine is used as asked for, and its {why}") as said:
        assert load(bundle, precision="int8").device == "cuda"
    assert [warning.filename for warning in said] == [__file__]


@pytest.mark.usefixtures("machine")
def test_an_int8_graph_is_for_the_cpu_where_no_engine_fits(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    add_int8(bundle, "model_int8_reduced.onnx", bits=7)
    with pytest.warns(FallbackWarning, match="THE CPU IS USED.*on a GPU int8 is for engines only") as said:
        model = load(bundle, device="cuda", precision="int8")
    assert (model.device, len(said)) == ("cpu", 1)
    assert model.description.startswith("model_int8_reduced.onnx")
    tried: list[str] = []

    class OnCpu(OnnxRuntimeBackend):
        def __init__(self, graph: Path, threads: int | None = None, *, as_written: bool, provider: str) -> None:
            tried.append(f"{graph.name} {provider}")
            super().__init__(graph, threads, as_written=as_written)

    monkeypatch.setattr(on_gpu_module, "OnnxRuntimeBackend", OnCpu)
    assert on_gpu(bundle).description.startswith("model_ort.onnx")  # auto, as before there was an INT8 graph
    assert tried == ["model_ort.onnx CUDAExecutionProvider"]


@pytest.mark.usefixtures("machine")
def test_an_onnx_runtime_without_the_operators_is_not_taken(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("onnxruntime.__version__", "1.30.2")
    reason = r"THE CPU IS USED.*ONNX Runtime 1\.30\.2.*lacks operators of the bundle's graphs; pip install"
    with pytest.warns(FallbackWarning, match=reason):
        assert load(bundle, device="cuda", precision="fp32").device == "cpu"


@pytest.mark.usefixtures("machine")
def test_fp8_needs_a_gpu(bundle: Path) -> None:
    add_entry(bundle, "fp8", "passed")
    refusal = r"precision is 'fp8', which needs a GPU; on the CPU load it in fp32"
    with pytest.raises(InputError, match=refusal + "$"):
        load(bundle, device="cpu", precision="fp8")
    with pytest.raises(InputError, match=refusal + "; on a GPU fp8 is for engines only"):
        load(bundle, precision="fp8", device="cuda")


def test_named_precision(bundle: Path, machine: Machine) -> None:
    add_engine(bundle, precision="int8")
    with pytest.warns(QualityWarning, match="its quality is not known"):
        assert load(bundle, precision="int8").description.startswith("a100-fp16-0.engine")
    machine.cuda.fail["cudaMalloc"] = Status.cudaErrorMemoryAllocation
    with pytest.raises(BundleError, match=r"holds no int8 graph; it has fp32; .*cudaMalloc of 4096 bytes failed"):
        load(bundle, precision="int8")


@pytest.mark.usefixtures("machine")
@pytest.mark.filterwarnings("error")  # none says that the CPU is used, which it is not
def test_bf16_needs_a_gpu(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = ensure_half_graph(bundle, "bf16")
    with pytest.raises(BackendError, match=r"NOT_IMPLEMENTED|Type Error"):  # what is said in its place below
        OnnxRuntimeBackend(bundle / graph.file)
    refusal = r"copy: precision is 'bf16', which needs a GPU; on the CPU load it in fp32"
    with pytest.raises(InputError, match=refusal + "$"):
        load(bundle, device="cpu", precision="bf16")
    add_engine(bundle, precision="bf16", builder_version="1.6.0.10")
    for device in ("auto", "cuda"):
        with pytest.raises(InputError, match=refusal + r"; .*was built by tensorrt-rtx 1\.6"):
            load(bundle, device=device, precision="bf16")
    add_engine(bundle, precision="bf16")
    assert on_gpu(bundle, precision="bf16").device == "cuda"

    def find_gpu() -> None:
        raise BackendError("cuInit returned error 803")

    monkeypatch.setattr("mbexport.runtime.on_gpu.find_gpu", find_gpu)
    with pytest.raises(InputError, match=refusal + "; cuInit returned error 803"):
        load(bundle, precision="bf16")


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc", "cudaMemcpyAsync", "cudaStreamCreateWithFlags"])
def test_a_failing_call_is_named_and_nothing_leaks(call: str, bundle: Path, machine: Machine) -> None:
    engine = add_engine(bundle)
    machine.cuda.fail[call] = Status.cudaErrorMemoryAllocation
    with pytest.warns(FallbackWarning, match=f"{call}.* failed with cudaErrorMemoryAllocation"):
        load(bundle)
    gc.collect()
    assert machine.cuda.leaks() == {}
    machine.cuda.fail.clear()
    backend = TensorRTBackend(bundle, engine)
    ids = np.ones((2, 5), np.int64)
    expected = backend.run(ids, ids)["logits"]
    machine.cuda.fail[call] = Status.cudaErrorMemoryAllocation
    if call == "cudaMemcpyAsync":
        with pytest.raises(BackendError, match="cudaMemcpyAsync failed"):
            backend.run(ids, ids)
    machine.cuda.fail.clear()
    assert (backend.run(ids, ids)["logits"] == expected).all()
    backend.close()
    assert machine.cuda.leaks() == {}
    with pytest.raises(BackendError, match="was closed"):
        backend.run(ids, ids)


@pytest.mark.usefixtures("machine")
def test_missing_cuda_bindings_are_named_as_the_package(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = add_engine(bundle)
    monkeypatch.setattr("mbexport.optional.installed", lambda module: module != "cuda.bindings")
    missing = r"^this needs cuda\.bindings, which is not installed: pip install "
    with pytest.raises(MissingExtraError, match=missing + r"'tensorrt-rtx==1\.7\.1\.\*' cuda-bindings$"):
        TensorRTBackend(bundle, engine)
    with pytest.raises(MissingExtraError, match=missing + "cuda-bindings$"):
        Cuda()


def test_an_engine_that_is_none(bundle: Path, machine: Machine) -> None:
    from dataclasses import replace
    from hashlib import sha256

    engine = add_engine(bundle)
    (bundle / engine.file).write_bytes(b"no engine")
    told = replace(engine, bytes=9, sha256=sha256(b"no engine").hexdigest())
    with pytest.raises(BackendError, match=r"cannot load it \(magic tag is wrong\)$"):
        TensorRTBackend(bundle, told)
    assert machine.cuda.leaks() == {}


def test_profiles_must_be_those_of_the_manifest(bundle: Path, machine: Machine) -> None:
    from dataclasses import replace

    engine = add_engine(bundle, "1x1:8x128:32x2048")
    with pytest.raises(BackendError, match="has the profiles 1x1:8x128:32x2048, the manifest says 1x1:8x128:64x2048"):
        TensorRTBackend(bundle, replace(engine, profile="1x1:8x128:64x2048"))
    gc.collect()
    assert machine.cuda.leaks() == {}


def test_another_gpu_of_the_thread_stays_current(bundle: Path, machine: Machine) -> None:
    add_engine(bundle)
    machine.cuda.current = 1
    model = on_gpu(bundle)
    model(TEXTS)
    assert machine.cuda.current == 1


def test_without_a_gpu_an_engine_loads_nothing_of_cuda(bundle: Path) -> None:
    add_engine(bundle)
    script = (
        "import sys; from mbexport import driver; from mbexport.runtime import load, on_gpu\n"
        "def find_gpu(): raise driver.NoGpuError('none')\n"
        f"on_gpu.find_gpu = find_gpu; load({str(bundle)!r}); "
        "print({'cuda.bindings.runtime', 'tensorrt_rtx'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (result.stdout.strip(), result.stderr) == ("set()", "")


def test_no_gpu(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_gpu() -> None:
        raise NoGpuError("no NVIDIA driver is installed")

    add_engine(bundle)
    monkeypatch.setattr("mbexport.runtime.on_gpu.find_gpu", find_gpu)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(bundle, device="auto").description.endswith("CPUExecutionProvider")
    with pytest.raises(InputError, match=r"^device is 'cuda', and no NVIDIA driver is installed; load with"):
        load(bundle, device="cuda")


@pytest.mark.usefixtures("machine")
def test_a_driver_that_does_not_work_is_said(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find_gpu() -> None:
        raise BackendError("cuInit returned error 803")

    add_engine(bundle)
    monkeypatch.setattr("mbexport.runtime.on_gpu.find_gpu", find_gpu)
    with pytest.warns(FallbackWarning, match="THE CPU IS USED, not the GPU; cuInit returned error 803") as said:
        load(bundle)
    assert said[0].filename == __file__


def test_a_tensorrt_that_does_not_load_is_a_reason(bundle: Path, machine: Machine) -> None:
    add_engine(bundle)

    def broken(_logger: Any) -> None:
        raise TypeError("factory function returned nullptr")

    machine.rtx.Runtime = broken
    with pytest.warns(FallbackWarning, match=r"THE CPU IS USED.*TensorRT-RTX 1\.7\.1\.116: factory function returned"):
        load(bundle)
    assert machine.cuda.leaks() == {}


@pytest.mark.usefixtures("machine")
def test_a_forked_process_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_engine(bundle)
    model = on_gpu(bundle)
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(BackendError, match="was loaded before this process was forked"):
        model(TEXTS)


@pytest.mark.usefixtures("machine")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_provider_that_puts_the_cpu_in_its_place_is_found_out(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("onnxruntime.__version__", "1.31.0")
    with pytest.warns(FallbackWarning, match="THE CPU IS USED.*does not work here, it took CPUExecutionProvider"):
        load(bundle)


@pytest.mark.usefixtures("machine")
def test_cuda_provider_runs_batches(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's own CPU in the place of its CUDA: all but the provider is as on a GPU."""
    expected = load(bundle, device="cpu").logits(TEXTS)
    shapes: list[tuple[int, ...]] = []

    class OnCpu(onnxruntime.InferenceSession):
        def __init__(self, graph: str, options: Any, *, providers: list[Any], enable_fallback: int) -> None:
            assert (providers, enable_fallback) == ([("CUDAExecutionProvider", {"use_tf32": "0"})], 0)
            super().__init__(graph, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def run(self, wanted: Any, inputs: Any) -> Any:
            shapes.append(inputs["input_ids"].shape)
            return super().run(wanted, inputs)

    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession", OnCpu)
    monkeypatch.setattr("onnxruntime.__version__", "1.31.0")
    model = on_gpu(bundle)
    assert model.description.startswith("model_ort.onnx")
    assert model.device == "cuda"
    assert np.abs(model.logits(TEXTS) - expected).max() <= 1e-5
    assert len(shapes) < len(TEXTS) // 2
    add_engine(bundle, compute_capability="8.9")
    with pytest.warns(FallbackWarning, match=r"model_ort\.onnx on ONNX Runtime .* is used; .*compute capability 8\.9"):
        load(bundle)


def test_a_graph_without_positions_gives_the_rows_of_masks(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", vocab_size=5000, architecture="ModernBertForMaskedLM")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, checkpoint)
    edit_config(checkpoint, lambda config: config.update(max_position_embeddings=64))
    export_onnx(checkpoint, tmp_path / "bundle")
    ids = np.arange(12).reshape(2, 6)
    given = ids, np.ones_like(ids), np.array([1, 8])
    rows = [
        OnnxRuntimeBackend(tmp_path / "bundle" / "onnx" / name).run(*given)["logits"]
        for name in ("model.onnx", "model_ort_selected.onnx")
    ]
    assert rows[0].shape == rows[1].shape == (2, 5000)
    assert np.abs(rows[0] - rows[1]).max() <= 1e-4
