"""Parts of the engine stage that need no build: the GPU table, refusals, shapes, masks, logs."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from mbexport import driver
from mbexport.checkpoint.spec import ModelSpec, parse_config
from mbexport.engines import build, builders, local, process, shapes, timings
from mbexport.engines.builders import choose_targets
from mbexport.engines.gpus import GPUS, RTX_TARGETS, find_gpu
from mbexport.engines.job import Job
from mbexport.engines.prepare import attention_nodes, broadcast_masks, prepare
from mbexport.engines.report import AttentionReport, fusion_warning
from mbexport.errors import BundleError, EngineError, InputError, MbexportError, MissingExtraError
from mbexport.files import no_progress
from mbexport.manifest import Engine
from mbexport.optional import installed
from mbexport.options import BUILDER_MODULES
from mbexport.processes import module_command
from mbexport.profiles import parse_profile
from mbexport.runtime.engines import DISTRIBUTIONS
from tests.attention_graphs import VOCABULARY, attention_model, write_attention_graph

HEADS = {"G": (2, 16), "l": (2, 16)}


def spec_of(**config: object) -> ModelSpec:
    base = {"model_type": "modernbert", "architectures": ["ModernBertModel"], "vocab_size": 64}
    return parse_config(base | config, None)[0]


def test_every_gpu_of_the_table_knows_what_it_can_compute() -> None:
    assert all(name == gpu.name for name, gpu in GPUS.items())
    assert GPUS["t4"].precisions == ("fp32", "fp16", "int8")
    assert GPUS["a100"].precisions == ("fp32", "fp16", "int8", "bf16")
    assert GPUS["rtx4090"].precisions == ("fp32", "fp16", "int8", "bf16", "fp8")
    assert GPUS["l4"].capability_text == "8.9"
    assert find_gpu("RTX4090") is GPUS["rtx4090"]


def test_targets_are_those_of_the_installed_tensorrt_rtx() -> None:
    import tensorrt_rtx

    names = [name for name in tensorrt_rtx.ComputeCapability.__members__ if name.startswith("SM")]
    assert {f"SM{major}{minor}" for major, minor in RTX_TARGETS} == set(names)
    assert set(BUILDER_MODULES) == set(DISTRIBUTIONS)


@pytest.mark.parametrize(
    ("gpu", "builder", "precision", "message"),
    [
        ("k80", "auto", "fp16", "known are t4, a100"),
        ("t4", "auto", "fp32", r"no FP32 matrix product for t4.*take --precision fp16, or build it on .*\[tensorrt\]'"),
        ("t4", "auto", "bf16", r"t4 has compute capability 7.5, and bf16 needs 8.0: a100, .*; take --precision fp16"),
        ("h100", "auto", "fp16", "on a machine that has the h100"),
        ("h200", "tensorrt-rtx", "fp16", "and h200 has 9.0; build it on a machine that has the h200"),
        ("a100", "tensorrt", "fp16", "no GPU can be read on this machine; run this on a machine that has the a100"),
        ("auto", "auto", "fp16", "no NVIDIA driver is installed; or name the GPU that the engine is for"),
        ("a100", "trtexec", "fp16", "expected one of auto, tensorrt-rtx, tensorrt"),
        ("a100", "auto", "int4", "expected one of fp16, bf16, fp32"),
    ],
)
def test_what_cannot_be_built_is_refused_at_once(
    gpu: str, builder: str, precision: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "find_gpu", without_gpu)
    with pytest.raises(InputError, match=message):
        choose_targets([gpu], builder, precision)


def test_one_refusal_refuses_all_and_none_is_one() -> None:
    with pytest.raises(InputError, match="h100"):
        choose_targets(["a100", "h100"], "auto", "fp16")
    with pytest.raises(InputError, match="no GPU is named"):
        choose_targets([], "auto", "fp16")
    assert [target.gpu.name for target in choose_targets(["a100", "t4", "A100"], "auto", "fp16")] == ["a100", "t4"]


def test_gpu_without_any_engine_is_told_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    for title, capability, name in (("GeForce GTX 1080", (6, 1), "gtx-1080"), ("Tesla V100-SXM2", (7, 0), "v100")):
        use_gpu(monkeypatch, title, capability, 7.9)
        for precision in ("fp16", "fp32"):
            message = rf"{name}.* has compute capability {capability[0]}.{capability[1]}, and TensorRT needs 7.5"
            with pytest.raises(InputError, match=message) as raised:
                choose_targets(["auto"], "auto", precision)
            assert "--precision" not in str(raised.value)


@pytest.mark.parametrize(
    ("builder", "keep", "config", "named"),
    [
        ("tensorrt-rtx", ["layers.0", "head"], {}, "layers.0, head"),
        ("tensorrt-rtx", ["layers.1.mlp", "embeddings"], {}, "layers.1.mlp"),
        ("tensorrt-rtx", ["embeddings"], {"architectures": ["ModernBertForMaskedLM"]}, "embeddings"),
        ("tensorrt-rtx", ["embeddings"], {}, None),
        ("tensorrt-rtx", ["embeddings", "head"], {"architectures": ["ModernBertModel"]}, None),
        ("tensorrt", ["layers.0"], {}, None),
    ],
)
def test_parts_in_fp32_need_products_that_turing_has_not(
    builder: str, keep: list[str], config: dict[str, object], named: str | None
) -> None:
    spec = spec_of(**({"architectures": ["ModernBertForSequenceClassification"]} | config))
    ampere, turing = (builders.Target(GPUS[name], builder, "") for name in ("a10", "t4"))
    build._check_kept([ampere], keep, spec)
    if named is None:
        build._check_kept([ampere, turing], keep, spec)
        return
    with pytest.raises(InputError, match=rf"no FP32 matrix product for t4 .*, and {named} would need one; leave that"):
        build._check_kept([ampere, turing], keep, spec)


def test_timing_cache_that_cannot_be_used_is_skipped_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert timings.timing_cache("rtx 4090") == timings.TimingCache(tmp_path / "cache/mbexport/rtx-4090.timing")
    (tmp_path / "cache/mbexport/t4.timing").mkdir()
    (tmp_path / "file").write_text("")
    for home, gpu in (("cache", "t4"), ("file", "l4")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
        cache = timings.timing_cache(gpu)
        assert cache.file is None
        assert "timings of kernels are not kept" in str(cache.warning)
        assert str(tmp_path / home) in str(cache.warning)


def test_temporary_folder_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(process.tempfile, "TemporaryFile", full)
    job = Job("tensorrt-rtx", (8, 0), "graph", (), (), None, None, "engine")
    with pytest.raises(EngineError, match=r"no temporary file for 3 bytes of graph .*No space left.*TMPDIR"):
        process.run(job, b"abc", no_progress)


def test_process_that_cannot_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "module_command", lambda _: ["/no/such/python"])
    job = Job("tensorrt-rtx", (8, 0), "graph", (), (), None, None, "engine")
    with pytest.raises(EngineError, match="no process for tensorrt-rtx can be started: No such file"):
        process.run(job, b"abc", no_progress)


@pytest.mark.parametrize("module", ["mbexport.engines.worker", "mbexport.bench.worker"])
def test_workers_run_nothing_of_the_current_directory(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("polygraphy", "numpy", "json", "runpy", "mbexport"):
        (tmp_path / f"{name}.py").write_text(f"open('{name} was run', 'w'); raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    ended = subprocess.run(module_command(module), input=b'{"do": "nothing"}\n', capture_output=True, check=False)
    assert list(tmp_path.glob("* was run")) == []
    assert b"Error" in ended.stdout + ended.stderr  # it read the line, and could not make sense of it
    assert b"was not found" not in ended.stderr


def without_gpu() -> None:
    raise driver.NoGpuError("no NVIDIA driver is installed")


def use_gpu(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], memory: float) -> None:
    monkeypatch.setattr(local, "find_gpu", lambda: driver.Device(name, "{}.{}".format(*capability)))
    monkeypatch.setattr(local, "gpu_memory", lambda: int(memory * 2**30))


@pytest.mark.parametrize(
    ("title", "capability", "memory", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", (8, 0), 79.2, "a100"),
        ("Tesla T4", (7, 5), 14.6, "t4"),
        ("NVIDIA GeForce RTX 4090", (8, 9), 23.6, "rtx4090"),
        ("NVIDIA L40S", (8, 9), 44.4, "l40s"),
        ("NVIDIA A10G", (8, 6), 22.1, "a10g"),
        ("NVIDIA RTX A6000", (8, 6), 47.5, "rtx-a6000"),
    ],
)
def test_local_gpu(
    title: str, capability: tuple[int, int], memory: float, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_gpu(monkeypatch, title, capability, memory)
    gpu = local.local_gpu()
    assert (gpu.name, gpu.compute_capability, gpu.memory) == (name, capability, round(memory))


def test_auto_takes_tensorrt_only_where_it_is_and_its_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpu(monkeypatch, "NVIDIA A100-SXM4-40GB", (8, 0), 39.4)
    (target,) = choose_targets(["auto"], "auto", "fp16")
    assert (target.gpu.name, target.builder) == ("a100", "tensorrt-rtx")
    assert target.why == "the a100 is here, but TensorRT is not installed"
    with pytest.raises(MissingExtraError, match=r"pip install 'mbexport\[tensorrt\]'"):
        choose_targets(["a100"], "tensorrt", "fp16")
    with pytest.raises(InputError, match="this machine's GPU is a100"):
        choose_targets(["t4"], "tensorrt", "fp16")
    monkeypatch.setattr(builders, "installed", lambda _: True)
    monkeypatch.setattr(builders, "require", lambda *_: None)
    targets = choose_targets(["a100", "l4"], "auto", "fp32")
    assert [target.builder for target in targets] == ["tensorrt", "tensorrt-rtx"]
    assert "is here, and TensorRT is installed" in targets[0].why
    assert "this machine's GPU is a100" in targets[1].why


def test_type_stubs_are_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_stubs").mkdir()
    (tmp_path / "only_stubs" / "__init__.pyi").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert not installed("only_stubs")
    assert not installed("no_such_package.part")
    assert installed("cuda.bindings")
    assert installed("polygraphy")


@pytest.mark.parametrize(
    ("gpu", "config", "length", "precision", "expected"),
    [
        ("t4", {}, 8192, "fp16", "1x1:1x128:1x8192,1x1:8x512:16x8192"),
        ("a100", {}, 8192, "fp16", "1x1:1x128:1x8192,1x1:8x512:32x8192"),
        ("t4", {}, 512, "fp16", "1x1:1x128:1x512,1x1:8x512:32x512"),
        ("t4", {}, 64, "fp16", "1x1:1x64:1x64,1x1:8x64:32x64"),
        ("t4", {"hidden_size": 4096, "num_attention_heads": 64}, 8192, "fp16", "1x1:1x128:1x8192,1x1:4x512:4x8192"),
        ("a100", {}, 8192, "fp32", "1x1:1x128:1x8192"),
        ("a100", {}, 512, "fp32", "1x1:1x128:1x512,1x1:8x512:32x512"),
    ],
)
def test_default_profiles(gpu: str, config: dict[str, int], length: int, precision: str, expected: str) -> None:
    profiles = shapes.default_profiles(GPUS[gpu], spec_of(**config), length, precision)
    assert ",".join(map(str, profiles)) == expected


def test_logits_of_a_masked_language_model_bound_the_profiles() -> None:
    spec = spec_of(architectures=["ModernBertForMaskedLM"], vocab_size=50368)
    largest = {name: shapes.default_profiles(gpu, spec, 8192, "fp16")[-1].largest for name, gpu in GPUS.items()}
    assert (largest["t4"], largest["a100"], largest["h200"]) == ((1, 8192), (4, 8192), (4, 8192))
    assert shapes.chosen_profiles(["1x1:4x512:5x8192"], spec, 8192, Path("bundle"))
    with pytest.raises(InputError, match=r"49152 tokens, each with 50368 logits.*those of 42635; end it with 5x8192"):
        shapes.chosen_profiles(["1x1:4x512:6x8192"], spec, 8192, Path("bundle"))


def test_default_profiles_stay_within_their_share_of_memory() -> None:
    spec = spec_of()
    for gpu in GPUS.values():
        for profile in shapes.default_profiles(gpu, spec, 8192, "fp16")[1:]:
            texts, length = profile.largest
            assert shapes.activation_bytes(texts, length, spec, "fp16") <= gpu.memory_bytes / 4
            twice = shapes.activation_bytes(2 * texts, length, spec, "fp16")
            assert texts == shapes.MOST_TEXTS or twice > gpu.memory_bytes / 4


def test_packed_rows_are_no_longer_than_their_pairs_are_one_tensor() -> None:
    spec = spec_of(max_position_embeddings=65_536)
    for gpu in GPUS.values():
        for profile in shapes.default_profiles(gpu, spec, 65_536, "fp16", packed=True):
            assert profile.largest[0] * profile.largest[1] ** 2 < 2**31
    with pytest.raises(InputError, match=r"1 packed rows of 65536 places.*end it with 1x46340"):
        shapes.chosen_profiles(["1x1:1x128:1x65536"], spec, 65_536, Path("bundle"), packed=True)
    assert shapes.chosen_profiles(["1x1:1x128:1x65536"], spec, 65_536, Path("bundle"))
    assert shapes.chosen_profiles(["1x1:1x128:1x46340"], spec, 65_536, Path("bundle"), packed=True)


def test_profile_beyond_the_model() -> None:
    bundle = Path("bundle")
    assert shapes.chosen_profiles(["1x1:8x128:8x512"], spec_of(), 512, bundle) == (parse_profile("1x1:8x128:8x512"),)
    with pytest.raises(InputError, match="reaches 513 tokens, and bundle takes at most 512"):
        shapes.chosen_profiles(["1x1:8x128:8x513"], spec_of(), 512, bundle)


def test_masks_are_broadcast_and_mean_the_same() -> None:
    model = attention_model("Gl", heads=HEADS, precision="fp32")
    random = np.random.default_rng(0)
    mask = np.ones((3, 9), np.int64)
    mask[1, 4:] = mask[2, :2] = 0
    feeds = {"input_ids": random.integers(0, VOCABULARY, mask.shape), "attention_mask": mask}
    before = ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)[0]
    assert broadcast_masks(model) == 1
    by_name = {node.name: node for node in model.graph.all_nodes()}
    masks = [node.inputs[3].name for node in attention_nodes(model)]
    assert masks == ["bias_keys", "layers.1/attn/own_bias"]  # of the local layer the expanded one is computed on
    after = ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)[0]
    np.testing.assert_array_equal(before, after)
    unmasked = ReferenceEvaluator(ir.to_proto(model)).run(None, feeds | {"attention_mask": np.ones_like(mask)})[0]
    assert np.abs(unmasked - after).max() > 1e-3
    assert "bias_by_query" in by_name


def test_what_only_an_expanded_mask_needed_is_gone() -> None:
    model = attention_model("GG", heads=HEADS)
    assert broadcast_masks(model) == 2
    assert not {"bias_by_query", "shape", "length"} & {node.name for node in model.graph.all_nodes()}
    assert broadcast_masks(model) == 0


def test_prepare_leaves_file_and_weights_alone(tmp_path: Path) -> None:
    graph = write_attention_graph(tmp_path, attention_model("Gl", heads={"G": (2, 64), "l": (2, 64)}))
    before = (tmp_path / graph.file).read_bytes()
    prepared = prepare(tmp_path / graph.file, [True, False])
    assert (tmp_path / graph.file).read_bytes() == before
    assert [(node.layer, node.kind) for node in prepared.attention] == [(0, "global"), (1, "local")]
    tensors = onnx.load_from_string(prepared.model).graph.initializer
    outside = [t.name for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL]
    assert sorted(outside) == sorted(["table", *(f"{n}.{part}" for n in range(2) for part in "qkvo")])


def test_prepare_refuses_other_graphs(tmp_path: Path) -> None:
    graph = write_attention_graph(tmp_path, attention_model("Gl", heads=HEADS))
    with pytest.raises(BundleError, match=r"layers.1/attn/attended.*none of the model's 1 layers"):
        prepare(tmp_path / graph.file, [True])
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    for name in ("graph.onnx", "none.onnx"):
        with pytest.raises(BundleError, match=f"{name} cannot be read as an ONNX graph"):
            prepare(tmp_path / name, [True])


LOG = """[V] Total Activation Memory: 5 bytes
[V] Total Activation Memory: 70 bytes
[V] Total Weights Memory: 9 bytes
"""


def test_memory_is_read_from_the_log() -> None:
    assert process.memory(LOG, 2) == process.Memory((5, 70), 9)
    assert process.memory(LOG, 1) == process.Memory((None,), 9)
    assert process.memory("", 2) == process.Memory((None, None), None)


@pytest.mark.parametrize(
    ("log", "end", "expected"),
    [
        ("[E] first\n[E] IBuilder: no\n  kernel\n[!] Invalid Engine. Please ensure", {}, "IBuilder: no"),
        ("[E] why\n[E] [x.cpp] Error Code 1: Cuda Runtime (no driver)", {"error": "PolygraphyException: x"}, "why"),
        ("[!] Invalid Engine.", {"error": "PolygraphyException: x"}, "Invalid Engine."),
        ("[E] why", {"error": "OSError: disk is full"}, "OSError: disk is full"),
        ("Assertion bound >= 0 failed. In checkVolume at x", {}, "more than 2^31 elements"),
        ("some last words\n", {}, "its process ended with code -9 (killed, as systems do when memory ends): some last"),
    ],
)
def test_reason_is_one_line(log: str, end: dict[str, str], expected: str) -> None:
    found = process.reason(-9, log, end)
    assert expected in found
    assert "\n" not in found


def test_fusion_warning_names_layers() -> None:
    engine = Engine("e.engine", "t4", "7.5", "fp16", "tensorrt-rtx", "1", "1x1:1x1:1x1", "ab", 1, "g.onnx", "cd")
    rows = (AttentionReport(0, "global", True), AttentionReport(1, "local", False), AttentionReport(2, "local", False))
    assert fusion_warning(rows[:1], engine) is None
    assert "not fused in the local layers 1, 2, so" in str(fusion_warning(rows, engine))
    assert "plain operators" in str(fusion_warning((), engine))
    assert issubclass(process.NotFusedError, MbexportError)
    assert dataclasses.is_dataclass(engine)
