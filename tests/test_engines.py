"""Engines really built by TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mbexport import build_engine, export_onnx
from mbexport import manifest as manifests
from mbexport.bundle.engine_graph import FP32_FILE, ensure_engine_graph
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.cli import main
from mbexport.engines import build as building
from mbexport.engines.builders import choose_targets
from mbexport.engines.job import Job
from mbexport.engines.prepare import prepare
from mbexport.engines.process import run as run_job
from mbexport.engines.report import EarlierGraphWarning
from mbexport.engines.shapes import activation_bytes
from mbexport.errors import EngineError, InputError
from mbexport.files import no_progress
from mbexport.profiles import parse_profile
from tests.attention_graphs import attention_model, write_attention_graph
from tests.checkpoints import copy_example, edit_config, edit_tensors, save_checkpoint
from tests.half import make_hostile

FUSED = {"G": (2, 64), "l": (2, 64)}
GLOBAL_NOT_FUSED = {"G": (1, 512), "l": (8, 64)}
SMALL = ["1x1:1x128:1x256"]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with layers GllG and without a graph for TensorRT, not to be changed."""
    directory = tmp_path_factory.mktemp("engines")
    save_checkpoint(directory / "checkpoint", hidden_size=128, num_attention_heads=2)
    export_onnx(directory / "checkpoint", directory / "bundle")
    return directory / "bundle"


def with_graph(exported: Path, target: Path, heads: dict[str, tuple[int, int]], precision: str = "fp16") -> Path:
    shutil.copytree(exported, target, dirs_exist_ok=True)
    graph = write_attention_graph(target, attention_model("GllG", heads=heads, precision=precision), precision)
    manifest = manifests.read(target)
    manifests.write(dataclasses.replace(manifest, graphs=(*manifest.graphs, graph)), target)
    return target


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return with_graph(exported, tmp_path / "bundle", FUSED)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["trt", *map(str, arguments)])


def test_engines_of_the_example_for_three_gpus(example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    result = run(bundle, "--gpu", "t4", "--gpu", "a100", "--gpu", "rtx4090")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert result.stdout.count("fused attention  6 of 6 layers") == 3
    assert "1 to 32 texts of 1 to 8192 tokens, fastest at 8 x 512; activations " in result.stdout
    assert "ahead of time: no GPU can be read on this machine" in result.stdout
    engines = manifests.read(bundle).engines
    assert [(engine.gpu, engine.compute_capability) for engine in engines] == [
        ("t4", "7.5"), ("a100", "8.0"), ("rtx4090", "8.9"),
    ]  # fmt: skip
    for engine in engines:
        data = (bundle / engine.file).read_bytes()
        assert engine.file == f"engines/{engine.gpu}-fp16.engine"
        assert (engine.bytes, engine.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert (engine.graph, engine.builder) == ("onnx/model_fp16.onnx", "tensorrt-rtx")
        assert engine.profile == "1x1:1x128:1x8192,1x1:8x512:32x8192"
    assert sorted(path.name for path in (bundle / "engines").iterdir()) == [
        "a100-fp16.engine", "rtx4090-fp16.engine", "t4-fp16.engine",
    ]  # fmt: skip
    shown = CliRunner().invoke(main, ["inspect", str(bundle)]).stdout
    assert "engines/t4-fp16.engine: t4 (compute capability 7.5), fp16, tensorrt-rtx " in shown
    assert "1 text of 1 to 8192 tokens, fastest at 1 x 128" in shown


def test_packed_engines_of_the_example_for_three_gpus(example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    result = run(bundle, "--gpu", "t4", "--gpu", "a100", "--gpu", "rtx4090", "--packed", "--json")
    assert result.exit_code == 0, result.output
    spec = read_bundle_spec(bundle, manifests.read(bundle))
    for report in json.loads(result.stdout):
        assert report["fused_attention"] == "6 of 6 layers"
        assert report["warnings"] == []
        for row in report["profiles"]:
            texts, length = parse_profile(row["profile"]).largest
            assert texts * length**2 < 2**31
            least, most = (activation_bytes(texts, length, spec, "fp16", packed=packed) for packed in (False, True))
            assert least < row["activation_bytes"] <= most
    engines = manifests.read(bundle).engines
    assert [engine.file for engine in engines] == [
        f"engines/{gpu}-fp16-packed.engine" for gpu in ("t4", "a100", "rtx4090")
    ]
    assert {(engine.packed, engine.graph) for engine in engines} == {(True, "onnx/model_fp16_packed.onnx")}
    with pytest.warns(EarlierGraphWarning, match=r"changed, and engines/t4-fp16-packed\.engine, .*of an earlier form"):
        build_engine(bundle, gpu="l4", profiles=SMALL, keep_fp32=["head"])
    refused = run(bundle, "--gpu", "a100", "--packed", "--profile", "1x1:8x512:32x8192")
    assert refused.exit_code == 2
    assert "32 packed rows of 8192 places" in refused.stderr
    assert "end it with 31x8192" in refused.stderr


@pytest.mark.parametrize(("precision", "fused"), [("bf16", 6), ("fp32", 0)])
def test_other_precisions_of_the_example(precision: str, fused: int, example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    (report,) = build_engine(bundle, gpu="l40s", precision=precision)
    assert sum(row.fused for row in report.attention) == fused
    assert [graph.precision for graph in manifests.read(bundle).graphs].count(precision) == (
        3 if precision == "fp32" else 1
    )


def test_parts_kept_in_fp32(example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    (half,) = build_engine(bundle, gpu="a10", profiles=SMALL)
    build_engine(bundle, gpu="l4", profiles=SMALL)
    with pytest.warns(EarlierGraphWarning) as warned:
        (mixed,) = build_engine(bundle, gpu="a10", profiles=SMALL, keep_fp32=["head"])
    assert [str(warning.message).split(";")[0] for warning in warned] == [
        "onnx/model_fp16.onnx changed, and engines/l4-fp16.engine is of an earlier form"
    ]
    shown = CliRunner().invoke(main, ["inspect", str(bundle)]).stdout
    assert "onnx/model_fp16.onnx: fp16, head in fp32, tensorrt, opset 23" in shown
    assert [line.split(", of ")[1] for line in shown.splitlines() if ".engine" in line] == [
        "an earlier onnx/model_fp16.onnx", "onnx/model_fp16.onnx"
    ]  # fmt: skip
    assert mixed.engine.sha256 != half.engine.sha256
    assert mixed.engine.graph_sha256 != half.engine.graph_sha256
    before = manifests.read(bundle)
    with pytest.raises(InputError, match=r"'layer\.0'"):
        build_engine(bundle, gpu="a10", profiles=SMALL, keep_fp32=["layer.0"])
    assert manifests.read(bundle) == before
    with pytest.raises(InputError, match="all of an fp32 engine is"):
        build_engine(bundle, gpu="a10", precision="fp32", keep_fp32=["head"])


def test_embeddings_in_fp32_are_no_product_and_a_layer_is_one(example_bundle: Path, tmp_path: Path) -> None:
    """Refused before anything is written; what is not refused does build."""
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    before = contents(bundle)
    result = run(bundle, "--gpu", "a10", "--gpu", "t4", "--keep-fp32", "layers.0.attn")
    assert result.exit_code == 2
    assert "no FP32 matrix product for t4 (compute capability 7.5), and layers.0.attn would need one" in result.stderr
    assert contents(bundle) == before
    result = run(bundle, "--gpu", "t4", "--profile", SMALL[0], "--keep-fp32", "embeddings")
    assert result.exit_code == 0, result.output


def contents(bundle: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} | dict.fromkeys(
        (path for path in bundle.rglob("*") if path.is_dir()), b""
    )


def test_engines_left_behind_are_named_also_where_the_build_fails(
    example_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    graph = ensure_engine_graph(bundle, "fp16")
    for gpu in ("t4", "a10"):
        engine = manifests.Engine(
            f"engines/{gpu}-fp16.engine", gpu, "8.0", "fp16", "tensorrt-rtx", "1", SMALL[0], "ab", 1, graph.file,
            graph.sha256,
        )  # fmt: skip
        manifests.write(manifests.read(bundle).with_engine(engine), bundle)

    def fail(*_: object) -> None:
        raise EngineError("no kernel")

    monkeypatch.setattr(building, "run", fail)
    result = run(bundle, "--gpu", "a10", "--keep-fp32", "head")
    assert result.exit_code == 2
    warning, error = result.stderr.splitlines()
    assert warning.startswith(
        "warning: onnx/model_fp16.onnx changed, and engines/t4-fp16.engine, engines/a10-fp16.engine are of an "
    )
    assert error == "mbexport: error: no kernel"
    assert run(bundle, "--gpu", "a10", "--keep-fp32", "head").stderr == f"{error}\n"  # nothing was written anew
    assert run(bundle, "--gpu", "a10", "--quiet").stderr == f"{error}\n"


def test_files_of_the_current_directory_are_not_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "polygraphy.py").write_text("raise SystemExit('a file of the current directory was run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert build_engine(bundle, gpu="l4", profiles=SMALL)


@pytest.mark.parametrize("folder", ["engines", "reports"])
def test_file_in_the_place_of_a_folder_is_named(folder: str, bundle: Path) -> None:
    shutil.rmtree(bundle / folder, ignore_errors=True)
    (bundle / folder).write_text("")
    result = run(bundle, "--gpu", "a100")
    assert result.exit_code == 2
    assert result.stderr == (f"mbexport: error: {bundle / folder} is a file, expected a folder; move the file away\n")


def test_what_cannot_be_written_is_named(bundle: Path) -> None:
    engine = bundle / "engines" / "a100-fp16.engine"
    engine.mkdir(parents=True)
    result = run(bundle, "--gpu", "a100", "--profile", SMALL[0])
    assert result.stderr == f"mbexport: error: {engine} cannot be written: Is a directory\n"
    assert manifests.read(bundle).engines == ()


def test_unusable_timing_cache_is_a_warning_of_the_report(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (target,) = choose_targets(["a100"], "tensorrt-rtx", "fp16")
    jobs = []

    def build_ahead(job: Job, *rest: Any) -> Any:
        jobs.append(job)
        return run_job(dataclasses.replace(job, builder="tensorrt-rtx", target=(8, 0)), *rest)

    monkeypatch.setattr(building, "run", build_ahead)
    on_the_gpu = dataclasses.replace(target, builder="tensorrt")
    (report,) = building.build_engines(bundle, [on_the_gpu], building.Options("fp16", profiles=SMALL), no_progress)
    (warning,) = report.warnings
    assert warning.startswith("timings of kernels are not kept for the next build: ")
    assert [job.timing_cache for job in jobs] == [None]


@pytest.mark.slow
def test_base_size(tmp_path: Path) -> None:
    size = {"vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22}
    size |= {"num_attention_heads": 12, "max_position_embeddings": 8192}
    export_onnx(save_checkpoint(tmp_path / "checkpoint", **size), tmp_path / "bundle")
    for report in build_engine(tmp_path / "bundle", gpu=["t4", "a100", "rtx4090"]):
        assert report.fused_text == "22 of 22 layers"
        assert report.seconds < 30
        assert report.peak_bytes is not None
        assert report.peak_bytes < 3e9
        for row in report.profiles:
            assert row.activation_bytes is not None
            texts, length = parse_profile(row.profile).largest
            spec = read_bundle_spec(tmp_path / "bundle", manifests.read(tmp_path / "bundle"))
            assert row.activation_bytes <= activation_bytes(texts, length, spec, "fp16")


def test_report(bundle: Path) -> None:
    result = run(bundle, "--gpu", "l4", "--profile", "1x1:1x128:1x256", "--profile", "2x8:8x64:16x128", "--json")
    (shown,) = json.loads(result.stdout)
    assert shown == json.loads((bundle / "reports" / "engine-l4-fp16.json").read_text())
    assert shown["engine"]["profile"] == "1x1:1x128:1x256,2x8:8x64:16x128"
    first, second = (row["activation_bytes"] for row in shown["profiles"])
    assert 10**5 < first < second < 10**9
    assert [(row["layer"], row["kind"], row["fused"]) for row in shown["attention"]] == [
        (0, "global", True), (1, "local", True), (2, "local", True), (3, "global", True),
    ]  # fmt: skip
    assert shown["layers"] > 50
    assert shown["seconds"] > 0
    assert 10**8 < shown["peak_bytes"] < 10**9
    assert shown["weight_bytes"] > 2 * 128 * (64 + 4 * 4 * 128)
    assert shown["engine"]["graph_sha256"] == manifests.read(bundle).graphs[-1].sha256
    assert shown["warnings"] == []


@pytest.mark.parametrize(
    ("heads", "loose", "named"),
    [
        (GLOBAL_NOT_FUSED, "global", "the global layers 0, 3, so"),
        ({"G": (8, 64), "l": (1, 512)}, "local", "the local layers 1, 2, so"),
        ({"G": (1, 512), "l": (1, 512)}, "global local", "the global layers 0, 3 and the local layers 1, 2, so"),
    ],
)
def test_attention_that_does_not_fuse_is_named_and_built(
    heads: dict[str, tuple[int, int]], loose: str, named: str, exported: Path, tmp_path: Path
) -> None:
    bundle = with_graph(exported, tmp_path / "bundle", heads)
    result = run(bundle, "--gpu", "a100", "--profile", SMALL[0])
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("warning: engines/a100-fp16.engine: attention is not fused in " + named)
    assert len(result.stderr.splitlines()) == 1
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("fused attention"))
    layers = named.removesuffix(", so")
    assert line == f"fused attention  {4 - 2 * len(loose.split())} of 4 layers; several kernels in {layers}"
    report = json.loads((bundle / "reports" / "engine-a100-fp16.json").read_text())
    assert all(row["fused"] == (row["kind"] not in loose) for row in report["attention"])
    assert (bundle / "engines" / "a100-fp16.engine").stat().st_size > 10**6


def test_same_graph_same_engine(bundle: Path) -> None:
    first = build_engine(bundle, gpu="rtx3090", profiles=SMALL)[0].engine
    again = build_engine(bundle, gpu="rtx3090", profiles=SMALL)[0].engine
    other = build_engine(bundle, gpu="rtx3090", profiles=["1x1:1x128:1x255"])[0].engine
    assert first == again
    assert first.sha256 != other.sha256
    assert manifests.read(bundle).engines == (other,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "t4", "--precision", "fp32"], "take --precision fp16"),
        (["--gpu", "a100", "--gpu", "h100"], "a machine that has the h100"),
        (["--gpu", "k80"], "known are t4, a100"),
        (["--gpu", "auto"], "name the GPU that the engine is for, e.g. --gpu t4"),
        (["--gpu", "a100", "--builder", "tensorrt"], "no GPU can be read on this machine"),
        (["--gpu", "a100", "--profile", "1x1:1x1:1x2049"], "takes at most 2048; end it with x2048 or less"),
        (["--gpu", "a100", "--profile", "8x512"], "expected three"),
        ([], "Missing option '--gpu'"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(arguments: list[str], message: str, bundle: Path) -> None:
    before = manifests.read(bundle)
    result = run(bundle, *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert manifests.read(bundle) == before
    assert not (bundle / "engines").exists()


def test_failed_build_leaves_the_earlier_engine(bundle: Path) -> None:
    (before,) = build_engine(bundle, gpu="a100", profiles=SMALL)
    damaged = bundle / "onnx" / "model_fp16.onnx_data"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    result = run(bundle, "--gpu", "a100")
    assert result.exit_code == 2
    assert result.stderr.startswith("mbexport: error: tensorrt-rtx could not build the engine: ")
    assert len(result.stderr.splitlines()) == 1
    assert manifests.read(bundle).engines == (before.engine,)
    assert [path.name for path in (bundle / "engines").iterdir()] == ["a100-fp16.engine"]
    assert hashlib.sha256((bundle / before.engine.file).read_bytes()).hexdigest() == before.engine.sha256


def test_interrupted_build_leaves_nothing(bundle: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(bundle, gpu="a100", profiles=SMALL, progress=interrupt)
    assert list((bundle / "engines").iterdir()) == []
    assert manifests.read(bundle).engines == ()


def test_interrupt_from_the_keyboard(bundle: Path) -> None:
    """Ctrl-C reaches both processes, as a terminal sends it to all of a group; engines that are done stay."""
    gpus = [word for name in ("a100", "a10", "l4", "t4", "rtx5090") for word in ("--gpu", name)]
    command = [sys.executable, "-m", "mbexport", "trt", str(bundle), *gpus]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (ignored in background jobs)
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not (bundle / "engines").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (130, "")
    assert stderr.strip() == "mbexport: interrupted by SIGINT; nothing half-written was left"
    engines = {engine.file for engine in manifests.read(bundle).engines}
    assert {f"engines/{path.name}" for path in (bundle / "engines").iterdir()} == engines
    assert len(engines) < 5


def test_progress_grows_over_all_engines(bundle: Path) -> None:
    seen: list[tuple[float, str]] = []
    build_engine(bundle, gpu=["t4", "l4"], profiles=SMALL, progress=lambda *a: seen.append((a[0] / a[1], a[2])))
    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert {what.split(":")[0] for _, what in seen} == {"t4", "l4", ""}
    assert len({share for share, what in seen if what.startswith("t4")}) > 20


def test_other_commands_entries_are_kept(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is read just before it is written, not before the build."""
    check = manifests.Check("meanwhile", "sdpa", {}, True)

    def build_meanwhile(job: Job, *rest: Any) -> Any:
        manifests.write(manifests.read(bundle).with_check(check), bundle)
        return run_job(job, *rest)

    monkeypatch.setattr(building, "run", build_meanwhile)
    build_engine(bundle, gpu="a100", profiles=SMALL)
    assert manifests.read(bundle).checks == (check,)
    assert len(manifests.read(bundle).engines) == 1


def test_fp32_attention_is_built_of_several_kernels(exported: Path, tmp_path: Path) -> None:
    bundle = with_graph(exported, tmp_path / "bundle", FUSED, "fp32")
    (report,) = build_engine(bundle, gpu="a100", precision="fp32", profiles=SMALL)
    assert report.fused_text == "0 of 4 layers"
    assert "global layers 0, 3 and the local layers 1, 2" in report.warnings[0]


def test_builder_refuses_fp32_for_turing_too(exported: Path, tmp_path: Path) -> None:
    """What the GPU table says before a build is what the builder would say."""
    bundle = with_graph(exported, tmp_path / "bundle", FUSED, "fp32")
    source = prepare(bundle / FP32_FILE, [True, False, False, True])
    names = tuple(node.name for node in source.attention)
    job = Job("tensorrt-rtx", (7, 5), str(source.path), tuple(SMALL), names, None, None, str(tmp_path / "engine"))
    with pytest.raises(EngineError, match="FP32 GEMM is not supported"):
        run_job(job, source.model, no_progress)
    run_job(dataclasses.replace(job, target=(8, 0)), source.model, no_progress)


def test_expanded_masks_would_take_memory(bundle: Path, tmp_path: Path) -> None:
    """Why they are broadcast: the same graph with and without, at one shape."""
    source = prepare(bundle / "onnx" / "model_fp16.onnx", [True, False, False, True])
    profiles = ("1x1:1x128:8x2048",)
    job = Job("tensorrt-rtx", (8, 0), str(source.path), profiles, (), None, None, str(tmp_path / "engine"))
    broadcast = run_job(job, write_globals(tmp_path / "1", expanded=False), no_progress)[1].activations[0]
    expanded = run_job(job, write_globals(tmp_path / "2", expanded=True), no_progress)[1].activations[0]
    assert broadcast is not None
    assert expanded is not None
    assert expanded - broadcast > 0.9 * 2 * 8 * 2048**2


def write_globals(directory: Path, *, expanded: bool) -> bytes:
    """A graph of global layers, weights inside, as it is or as it is prepared."""
    import onnx_ir as ir

    directory.mkdir()
    model = attention_model("GG", heads=FUSED)
    ir.save(model, directory / "graph.onnx")
    return (directory / "graph.onnx").read_bytes() if expanded else prepare(directory / "graph.onnx", [True] * 2).model


def test_lines_for_tensorrt_itself_run_on_the_other_builder(bundle: Path, tmp_path: Path) -> None:
    """Without a target: the configuration that TensorRT gets, a workspace and a timing cache, written and read."""
    source = prepare(bundle / "onnx" / "model_fp16.onnx", [True, False, False, True])
    cache, engine = tmp_path / "cache", tmp_path / "engine"
    job = Job("tensorrt-rtx", None, str(source.path), tuple(SMALL), (), 2**26, str(cache), str(engine))
    for _ in range(2):
        built, _ = run_job(job, source.model, no_progress)
        assert cache.stat().st_size > 0
        assert engine.stat().st_size == built.bytes


def test_builder_that_is_not_there(bundle: Path, tmp_path: Path) -> None:
    source = prepare(bundle / "onnx" / "model_fp16.onnx", [True, False, False, True])
    job = Job("tensorrt", None, str(source.path), tuple(SMALL), (), None, None, str(tmp_path / "engine"))
    with pytest.raises(EngineError, match="tensorrt could not build the engine: its process ended with code 1: "):
        run_job(job, source.model, no_progress)


def test_a_checkpoint_that_needs_factors_builds_with_fused_attention(tmp_path: Path) -> None:
    checkpoint = copy_example(tmp_path / "checkpoint")
    edit_config(checkpoint, lambda config: config.update(norm_eps=1e-20))
    make_hostile(checkpoint)
    export_onnx(checkpoint, tmp_path / "bundle")
    for report in build_engine(tmp_path / "bundle", gpu=["t4", "rtx4090"], profiles=SMALL):
        assert report.fused_text == "6 of 6 layers"
        assert report.warnings == ()


@pytest.mark.parametrize("keep", [["layers.0", "layers.4.attn"], ["embeddings", "head", "layers.5.mlp"]])
def test_parts_in_fp32_leave_attention_fused(keep: list[str], example_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example_bundle, tmp_path / "bundle"))
    (report,) = build_engine(bundle, gpu="a100", profiles=SMALL, keep_fp32=keep)
    assert report.fused_text == "6 of 6 layers"


def test_scores_that_fp16_may_not_hold_are_a_warning(tmp_path: Path) -> None:
    checkpoint = copy_example(tmp_path / "checkpoint")
    edit_tensors(checkpoint, lambda tensors: {
        name: tensor * 40 if name.endswith("layers.1.attn.Wqkv.weight") else tensor for name, tensor in tensors.items()
    })  # fmt: skip
    export_onnx(checkpoint, tmp_path / "bundle")
    (report,) = build_engine(tmp_path / "bundle", gpu="a100", profiles=SMALL)
    (warning,) = report.warnings
    assert "scores beyond 20000 in layers.1, and" in warning
