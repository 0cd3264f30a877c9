"""The graph that engines are built from: exact in float32, and in FP16 as close as FP16 can be."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mbexport import export_onnx, manifest, validate
from mbexport.bundle.half import ensure_half_graph
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.errors import InputError, PrecisionError
from mbexport.precision import half
from tests.checkpoints import (
    EXAMPLE,
    edit_config,
    edit_tensors,
    save_checkpoint,
    torch_model,
    torch_output,
)
from tests.half import ENGINE_GRAPH, make_hostile, write_engine_graph
from tests.inputs import SPECIAL_LENGTHS, allowed_error, error, padded_batch, run_graph
from tests.parity.test_architectures import VARIANTS as ARCHITECTURES
from tests.parity.test_heads import VARIANTS as HEADS
from tests.parity.test_mutations import MUTATIONS, mutant
from tests.parity.test_sentences import PIPELINES, save_pipeline

FP16 = "onnx/model_fp16.onnx"
LEAST_COSINE = 0.9999
LARGEST_ERROR = 0.01  # of the spread of the outputs, of a small random model


def cosines(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return (found.astype(np.float64) * expected).sum(axis=-1) / norms


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_float32_form_at_every_length_and_padding(pooling: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", classifier_pooling=pooling)
    export_onnx(checkpoint, tmp_path / "bundle")
    write_engine_graph(tmp_path / "bundle", read_bundle_spec(tmp_path / "bundle", manifest.read(tmp_path / "bundle")))
    model = torch_model(checkpoint)
    for length in (*SPECIAL_LENGTHS, 383, 384, 385, 1024):
        ids, mask = padded_batch(length, 512)
        if pooling == "cls":
            ids, mask = sighted(ids, mask, half_window=64)
        expected = torch_output(model, ids, mask)
        assert error(run_graph(tmp_path / "bundle", ENGINE_GRAPH, ids, mask), expected, mask) <= allowed_error(expected)


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutant_is_found(name: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    ids, mask = (x[[0, 1, 3]] for x in padded_batch(300, 512))
    expected = torch_output(torch_model(checkpoint), ids, mask)
    for mutate, passes in ((MUTATIONS[name], False), (lambda spec: spec, True)):
        bundle = mutant(checkpoint, mutate, tmp_path / f"bundle-{passes}")
        spec = mutate(read_bundle_spec(bundle, manifest.read(bundle)))
        write_engine_graph(bundle, spec)
        found = error(run_graph(bundle, ENGINE_GRAPH, ids, mask), expected, mask)
        assert (found <= allowed_error(expected)) is passes


def half_bundle(checkpoint: Path, bundle: Path, **options: object) -> Path:
    export_onnx(checkpoint, bundle)
    ensure_half_graph(bundle, "fp16", **options)
    return bundle


def sighted(ids: np.ndarray, mask: np.ndarray, half_window: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose first position sees a real token: for others see EngineDialect."""
    rows = mask[:, : half_window + 1].any(axis=1)
    return ids[rows], mask[rows]


def check_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.isfinite(found).all()
    assert cosines(found, expected).min() >= LEAST_COSINE
    assert (found.argmax(axis=-1) == expected.argmax(axis=-1)).all()


def test_trained_example_to_8192_tokens(tmp_path: Path) -> None:
    bundle = half_bundle(EXAMPLE, tmp_path / "bundle")
    model = torch_model(EXAMPLE, "sdpa")
    for length in (*SPECIAL_LENGTHS, 512, 2048, 8192):
        ids, mask = padded_batch(length, 5000)
        for row in range(4) if length < 8192 else (0, 3):  # one at a time, for PyTorch's memory
            one, one_mask = ids[row : row + 1], mask[row : row + 1]
            check_close(run_graph(bundle, FP16, one, one_mask), torch_output(model, one, one_mask))


@pytest.mark.parametrize("name", [*HEADS, *ARCHITECTURES])
def test_every_head_and_architecture(name: str, tmp_path: Path) -> None:
    """Against the FP32 graph, which other tests hold against PyTorch."""
    checkpoint = save_checkpoint(tmp_path / "checkpoint", **(HEADS | ARCHITECTURES)[name])
    check_all_outputs(half_bundle(checkpoint, tmp_path / "bundle"), vocabulary=512)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_sentence_pipeline(name: str, tmp_path: Path) -> None:
    check_all_outputs(half_bundle(save_pipeline(tmp_path, *PIPELINES[name]()), tmp_path / "bundle"), vocabulary=5000)


def check_all_outputs(bundle: Path, vocabulary: int) -> None:
    exact, found = (onnxruntime.InferenceSession(str(bundle / file)) for file in ("onnx/model.onnx", FP16))
    assert [output.name for output in found.get_outputs()] == [output.name for output in exact.get_outputs()]
    assert [output.shape for output in found.get_outputs()] == [output.shape for output in exact.get_outputs()]
    half_window = read_bundle_spec(bundle, manifest.read(bundle)).half_window
    for length in (1, 66, 190):
        ids, mask = sighted(*padded_batch(length, vocabulary), half_window)
        inputs = {"input_ids": ids, "attention_mask": mask}
        for a, b in zip(exact.run(None, inputs), found.run(None, inputs), strict=True):
            assert b.dtype == np.float32
            rows = slice(None) if a.shape[:2] != ids.shape else mask == 1
            spread = a[rows].max() - a[rows].min()
            assert np.abs(a[rows] - b[rows]).max() <= LARGEST_ERROR * spread


@pytest.mark.parametrize("keep", [["embeddings"], ["head", "layers.1.mlp"], ["layers.0", "layers.2.attn"]])
def test_parts_kept_in_float32(keep: list[str], tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    bundle = half_bundle(checkpoint, tmp_path / "bundle", keep_fp32=keep)
    check_all_outputs(bundle, vocabulary=512)
    types = {}
    for tensor in onnx.load(bundle / FP16, load_external_data=False).graph.initializer:
        types[tensor.name] = tensor.data_type
    wide = {name for name, dtype in types.items() if name.endswith(".weight") and dtype == onnx.TensorProto.FLOAT}
    products = {name for name in wide if "norm" not in name and name != "classifier.weight"}
    assert products == {name for name in types if any(name.startswith(f"{part}.") for part in keep)} - norms(types)
    before = (bundle / FP16).stat().st_mtime_ns
    assert ensure_half_graph(bundle, "fp16", keep_fp32=keep[::-1]).precision == "fp16"
    assert (bundle / FP16).stat().st_mtime_ns == before  # what is there already serves
    ensure_half_graph(bundle, "fp16")
    assert (bundle / FP16).stat().st_mtime_ns != before
    assert len(manifest.read(bundle).weights) == 2


def norms(names: Iterable[str]) -> set[str]:
    return {name for name in names if "norm" in name or not name.endswith(".weight")}


@pytest.mark.parametrize("name", ["layers.4", "classifier", "layers", "layers.-1.attn", ""])
def test_unknown_part_is_refused(name: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(InputError, match=r"expected embeddings, head, layers\.N"):
        half_bundle(checkpoint, tmp_path / "bundle", keep_fp32=[name])


def test_queries_beyond_any_balance_are_refused(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    edit_tensors(checkpoint, lambda tensors: {
        name: tensor * 1e5 if name.endswith("2.attn.Wqkv.weight") else tensor for name, tensor in tensors.items()
    })  # fmt: skip
    with pytest.raises(PrecisionError, match=r"layers\.2\.attn could reach .* take --precision bf16"):
        half_bundle(checkpoint, tmp_path / "bundle")
    assert [graph.precision for graph in manifest.read(tmp_path / "bundle").graphs] == ["fp32", "fp32"]
    assert sorted(path.name for path in (tmp_path / "bundle/onnx").iterdir()) == [
        "model.onnx", "model.onnx_data", "model_ort.onnx"
    ]  # fmt: skip
    ensure_half_graph(tmp_path / "bundle", "bf16")


def test_hostile_checkpoint_overflows_when_it_is_only_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same function in float32; in FP16 only with the factors taken out."""
    checkpoint = save_checkpoint(tmp_path / "checkpoint", norm_eps=1e-20)
    ids, mask = (x[[0, 1, 3]] for x in padded_batch(300, 512))
    expected = torch_output(torch_model(checkpoint), ids, mask)
    make_hostile(checkpoint)
    hostile = torch_model(checkpoint)
    assert error(torch_output(hostile, ids, mask), expected, mask) <= allowed_error(expected)
    with torch.inference_mode():
        converted = hostile.half()(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
    assert not torch.isfinite(converted).all()

    bundle = half_bundle(checkpoint, tmp_path / "bundle")
    check_close(run_graph(bundle, FP16, ids, mask), expected)
    report = json.loads((bundle / "reports/precision-fp16.json").read_text())
    shifted = {value["name"].split(".", 2)[-1] for value in report["values"] if value["shift"]}
    assert {"embeddings", "attn.in", "mlp.in", "attn.qk", "attn.v", "attn.Wo", "mlp.gate", "mlp.Wo"} <= shifted

    monkeypatch.setattr(half, "LIMIT", 2.0**100)  # the control: the same graph, nothing taken out for its size
    monkeypatch.setattr(half, "MOST_WEIGHT", 2.0**100)
    naive = half_bundle(checkpoint, tmp_path / "naive")
    assert not np.isfinite(run_graph(naive, FP16, ids, mask)).all()


def test_gentle_checkpoint_is_only_converted(tmp_path: Path) -> None:
    """Where nothing can overflow, no factor and no node for one is added."""
    bundle = half_bundle(EXAMPLE, tmp_path / "bundle")
    values = json.loads((bundle / "reports/precision-fp16.json").read_text())["values"]
    assert not any(value["shift"] for value in values)
    assert max(value["bound"] for value in values) <= half.LIMIT
    names = {tensor.name for tensor in onnx.load(bundle / FP16, load_external_data=False).graph.initializer}
    assert not any(name.endswith(".scale") for name in names)


def test_validate_holds_fp16_to_cosine_and_predictions(tmp_path: Path) -> None:
    bundle = half_bundle(EXAMPLE, tmp_path / "bundle")
    ensure_half_graph(bundle, "bf16")
    report = validate(bundle, checkpoint=EXAMPLE, max_length=300)
    assert report.passed
    assert report.graphs[2].limits == {"cosine": 0.9999, "agreement": 0.999}
    assert set(report.skipped) == {"onnx/model_bf16.onnx"}


def test_validate_finds_a_fault_of_the_fp16_graph_alone(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    export_onnx(checkpoint, tmp_path / "bundle")
    edit_config(tmp_path / "bundle", lambda config: config.update(local_attention=126))
    ensure_half_graph(tmp_path / "bundle", "fp16")
    report = validate(tmp_path / "bundle", checkpoint=checkpoint, max_length=300)
    assert [graph.passed for graph in report.graphs] == [True, True, False]
    assert not report.passed
