"""Engines on a real GPU: ``pytest -m gpu``. Nothing here stands in for anything.

``MBEXPORT_GPU_BUNDLE`` names a bundle with an engine for this GPU; without it, one of the trained example is
exported and its engine built here, by TensorRT-RTX (or what MBEXPORT_GPU_BUILDER says).
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mbexport.driver import Device, find_gpu
from mbexport.errors import BackendError, InputError
from mbexport.runtime import Model, load
from mbexport.runtime.backends.tensorrt import TensorRTBackend
from tests.checkpoints import EXAMPLE

TEXTS = [
    f"{start} {'more ' * n}" for n in (0, 3, 20, 90, 300) for start in ("The striker scored.", "", "naïve 東京 🎉")
]


@pytest.fixture(scope="module")
def gpu() -> Device:
    try:
        return find_gpu()
    except BackendError as cause:
        pytest.skip(f"needs an NVIDIA GPU: {cause}")


@pytest.fixture(scope="module")
def bundle(gpu: Device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("MBEXPORT_GPU_BUNDLE")
    if given:
        return Path(given)
    from mbexport import build_engine, export_onnx

    directory = tmp_path_factory.mktemp(gpu.compute_capability) / "bundle"
    export_onnx(EXAMPLE, directory)
    build_engine(directory, gpu=["auto"], builder=os.environ.get("MBEXPORT_GPU_BUILDER", "tensorrt-rtx"))
    return directory


@pytest.fixture(scope="module")
def model(bundle: Path) -> Model:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load(bundle, device="cuda")


def memory_in_use() -> int:
    from cuda.bindings import runtime

    _, free, total = runtime.cudaMemGetInfo()
    return int(total - free)


def near(found: np.ndarray, expected: np.ndarray) -> None:
    """FP16 against FP32: 1 % of the spread, and the same answers."""
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= 0.01 * (expected.max() - expected.min())


pytestmark = pytest.mark.gpu


def test_the_engine_is_what_runs(model: Model) -> None:
    assert isinstance(model._executor.all, TensorRTBackend)
    assert ".engine on TensorRT" in model.description
    assert model.device == "cuda"


def test_answers_equal_the_cpu(model: Model, bundle: Path) -> None:
    expected = load(bundle, device="cpu").logits(TEXTS)
    for _ in range(6):  # new shapes, then shapes that come again: specialized kernels, CUDA graphs
        near(model.logits(TEXTS), expected)
    near(np.concatenate([model.logits([text]) for text in TEXTS]), expected)


def test_shapes_in_turn_do_not_disturb_one_another(model: Model) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(5, 4000, length) for length in (3, 8, 64, 65, 200, 500)]
    first = [model.outputs_of_tokens([text])[0]["logits"] for text in texts]
    for _ in range(6):
        for number in rng.permutation(len(texts)):
            near(model.outputs_of_tokens([texts[number]])[0]["logits"], first[number])


def test_padding_changes_nothing(model: Model) -> None:
    rng = np.random.default_rng(1)
    texts = [rng.integers(5, 4000, length) for length in range(100, 130, 3)]
    together = [output["logits"] for output in model.outputs_of_tokens(texts)]
    for text, found in zip(texts, together, strict=True):
        near(found, model.outputs_of_tokens([text])[0]["logits"])


def test_many_threads(model: Model) -> None:
    alone = model.logits(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        for together in pool.map(model.logits, [TEXTS] * 40):
            near(together, alone)


def test_a_text_longer_than_the_engine_takes(model: Model) -> None:
    backend = model._executor.all
    assert isinstance(backend, TensorRTBackend)
    longest = max(profile.largest[1] for profile in backend.limits.profiles)
    if longest >= model.manifest.max_length:
        pytest.skip("the engine takes whatever the model takes")
    with pytest.raises(InputError, match=f"takes at most {longest}"):
        model.outputs_of_tokens([np.full(longest + 1, 7)])


def test_memory_is_given_back(bundle: Path) -> None:
    def use() -> None:
        own = load(bundle, device="cuda")
        for _ in range(4):
            own.logits(TEXTS)

    use()  # what the driver keeps for good is taken now
    gc.collect()
    before = memory_in_use()
    for _ in range(3):
        use()
        gc.collect()
    assert memory_in_use() <= before + 64 * 2**20


def test_a_process_that_ends_with_a_loaded_model_ends_well(bundle: Path) -> None:
    script = f"from mbexport.runtime import load; m = load({str(bundle)!r}, device='cuda'); print(len(m(['text'])))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "1"), result.stderr


def test_graphs_are_as_close_to_flash_attention_as_it_is_to_float32(gpu: Device, tmp_path: Path) -> None:
    pytest.importorskip("flash_attn", reason=f"needs flash-attn on the {gpu.name}")
    from mbexport import export_onnx, validate
    from mbexport.checkpoint.load import load_checkpoint
    from tests.parity.test_mutations import MUTATIONS, mutant

    export_onnx(EXAMPLE, tmp_path / "bundle")
    report = validate(tmp_path / "bundle", checkpoint=EXAMPLE, reference="flash_attention_2", max_length=1024)
    assert report.passed
    assert report.reference.startswith("flash_attention_2, ")
    assert report.half is not None
    assert report.half.max_error > 0
    spec = load_checkpoint(EXAMPLE).spec
    wrong = mutant(EXAMPLE, lambda _: MUTATIONS["one theta everywhere"](spec), tmp_path / "wrong")
    assert not validate(wrong, checkpoint=EXAMPLE, reference="flash_attention_2", max_length=1024).passed
