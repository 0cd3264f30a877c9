"""Rows of several texts: each answers as PyTorch answers it alone, and no text sees another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from mbexport import export_onnx, validate
from mbexport import manifest as manifests
from mbexport.bundle.engine_graph import ensure_engine_graph
from mbexport.bundle.stored import StoredWeights
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.errors import GraphError, InputError
from mbexport.graph.encoder import build_graph
from mbexport.parity.graphs.rounding import RoundedGraph
from mbexport.runtime.backends.ort import OnnxRuntimeBackend
from mbexport.runtime.batches import Limits
from mbexport.runtime.forward import Outputs, forward, lay_out
from mbexport.runtime.packing import plan_packed, positions_of
from mbexport.runtime.schedule import Run
from tests.bundles import rehash
from tests.checkpoints import copy_example, edit_tensors, save_checkpoint, torch_model
from tests.half import make_hostile
from tests.inputs import allowed_error
from tests.parity.test_architectures import VARIANTS as ARCHITECTURES
from tests.parity.test_heads import VARIANTS as HEADS
from tests.parity.test_heads import torch_outputs
from tests.parity.test_sentences import PIPELINES, reference, save_pipeline

PACKED = "onnx/model_packed.onnx"
LENGTHS = (1, 40, 64, 65, 66, 127, 128, 129, 257, 400)  # around windows and blocks


def texts_of(vocabulary: int, lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, vocabulary, length).astype(np.int64) for length in lengths]


def packed_outputs(bundle: Path, texts: list[np.ndarray]) -> list[Outputs]:
    """Of each text, as the runtime computes and unpacks them; few rows hold many texts."""
    manifest, backend = manifests.read(bundle), OnnxRuntimeBackend(bundle / PACKED)
    found: dict[int, Outputs] = {}
    runs = plan_packed([len(text) for text in texts], Limits())
    assert sum(run.rows for run in runs) <= len(texts) / 2
    for run in runs:
        found |= zip(run.texts, forward(backend, run, texts, manifest, None), strict=True)
    return [found[number] for number in range(len(texts))]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_texts_equal_texts_alone(name: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", **ARCHITECTURES[name])
    export_onnx(checkpoint, tmp_path / "bundle", packed=True)
    texts = texts_of(model_vocabulary(checkpoint))
    for ours, theirs in zip(packed_outputs(tmp_path / "bundle", texts), alone(tmp_path / "bundle", texts), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(np.abs(ours[key] - theirs[key]).max() <= 1e-5 * max(1, np.ptp(theirs[key])) for key in ours)


@pytest.mark.parametrize("name", HEADS)
def test_packed_texts_equal_pytorch(name: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", **HEADS[name])
    export_onnx(checkpoint, tmp_path / "bundle", packed=True)
    model, texts = torch_model(checkpoint), texts_of(model_vocabulary(checkpoint))
    for text, outputs in zip(texts, packed_outputs(tmp_path / "bundle", texts), strict=True):
        expected = torch_outputs(model, text[None], np.ones_like(text[None]))
        assert len(outputs) == len(expected)
        for ours, theirs in zip(outputs.values(), expected, strict=True):
            assert np.abs(ours - theirs.reshape(ours.shape)).max() <= max(1e-5, allowed_error(theirs)), len(text)


def alone(bundle: Path, texts: list[np.ndarray]) -> list[Outputs]:
    """Of each text, each in a row of its own and unpadded."""
    manifest, backend = manifests.read(bundle), OnnxRuntimeBackend(bundle / "onnx/model.onnx")
    return [forward(backend, Run((n,), len(text)), texts, manifest, None)[0] for n, text in enumerate(texts)]


def model_vocabulary(checkpoint: Path) -> int:
    return int(json.loads((checkpoint / "config.json").read_text())["vocab_size"])


@pytest.mark.parametrize("name", [name for name in PIPELINES if name not in ("max", "normalized twice")])
def test_packed_vectors_equal_sentence_transformers(name: str, tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path, *PIPELINES[name]())
    export_onnx(pipeline, tmp_path / "bundle", packed=True)
    texts = texts_of(5000)
    for text, outputs in zip(texts, packed_outputs(tmp_path / "bundle", texts), strict=True):
        expected = reference(pipeline, "sentence_embedding", text[None], np.ones_like(text[None]))[0]
        assert np.abs(outputs["sentence_embedding"] - expected).max() <= max(1e-5, allowed_error(expected))


def test_a_text_that_sees_its_neighbours_is_found(tmp_path: Path) -> None:
    """The controls: one number for all texts of a row; positions that begin anew at the wrong place."""
    export_onnx(save_checkpoint(tmp_path / "checkpoint"), tmp_path / "bundle", packed=True)
    texts = texts_of(512, (100, 130, 140, 90))
    backend = OnnxRuntimeBackend(tmp_path / "bundle" / PACKED)
    (run,) = plan_packed([len(text) for text in texts], Limits())
    rows = lay_out(run, texts)

    def logits(texts_of_rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        inputs = {"input_ids": rows.input_ids, "attention_mask": texts_of_rows, "position_ids": positions}
        values: np.ndarray = backend._session.run(["logits"], inputs)[0]
        return values.reshape(-1, values.shape[-1])[rows.starts]

    mask, positions = rows.attention_mask, positions_of(rows.attention_mask)
    exact = logits(mask, positions)
    spread = float(np.ptp(exact))
    running_on = np.broadcast_to(np.arange(mask.shape[1]), mask.shape)
    assert (
        np.abs(logits(mask, np.ascontiguousarray(running_on)) - exact).max() < 1e-3 * spread
    )  # only differences count
    assert np.abs(logits((mask > 0).astype(np.int64), positions) - exact).max() > 0.01 * spread
    assert np.abs(logits(mask, np.roll(positions, 7, axis=1)) - exact).max() > 0.01 * spread


@pytest.mark.parametrize("hostile", [False, True])
def test_fp16_packed_rows_agree_with_fp32(hostile: bool, tmp_path: Path) -> None:
    """Every value rounded to FP16; also where an exact rescaling makes channels overflow in a plain conversion."""
    checkpoint = copy_example(tmp_path / "checkpoint")
    if hostile:
        make_hostile(checkpoint)
    export_onnx(checkpoint, tmp_path / "bundle", packed=True)
    graph = ensure_engine_graph(tmp_path / "bundle", "fp16", packed=True)
    texts = texts_of(5000, (20, 33, 64, 70, 150, 300))
    expected = np.stack([outputs["logits"] for outputs in alone(tmp_path / "bundle", texts)])
    (run,) = plan_packed([len(text) for text in texts], Limits())[:1]
    rows = lay_out(run, texts)
    (found,) = RoundedGraph(tmp_path / "bundle" / graph.file).run(rows.input_ids, rows.attention_mask)
    off = np.abs(found.reshape(-1, found.shape[-1])[rows.starts] - expected[list(run.texts)]).max()
    assert off <= 0.01 * np.ptp(expected)


def test_packed_graphs_share_the_weights_and_follow_them(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    export_onnx(copy_example(tmp_path / "checkpoint"), bundle, packed=True)
    before = sum(path.stat().st_size for path in (bundle / "onnx").glob("*_data"))
    packed = ensure_engine_graph(bundle, "fp16", packed=True)
    assert (packed.file, packed.packed_of) == ("onnx/model_fp16_packed.onnx", "onnx/model_fp16.onnx")
    assert ensure_engine_graph(bundle, "fp16", packed=True) == packed
    assert sum(path.stat().st_size for path in (bundle / "onnx").glob("*_data")) < 1.7 * before  # FP32, and FP16 once
    assert (bundle / packed.file).stat().st_size < 10**5
    kept = ensure_engine_graph(bundle, "fp16", keep_fp32=["layers.1"], packed=True)  # other weights: packed anew
    assert kept.sha256 != packed.sha256
    assert kept.keep_fp32 == ("layers.1",)
    assert [graph for graph in manifests.read(bundle).graphs if graph.packed_of == packed.packed_of] == [kept]


def test_what_cannot_be_packed_is_refused(tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path, *PIPELINES["max"]())
    with pytest.raises(InputError, match=r"pools by the largest value \(max\).*do not pack"):
        export_onnx(pipeline, tmp_path / "bundle", packed=True)
    assert not (tmp_path / "bundle").exists()
    export_onnx(pipeline, tmp_path / "bundle")
    with pytest.raises(InputError, match="largest value"):
        ensure_engine_graph(tmp_path / "bundle", "fp16", packed=True)


def test_onnx_runtimes_dialect_has_no_packed_form(tmp_path: Path) -> None:
    export_onnx(save_checkpoint(tmp_path / "checkpoint"), tmp_path / "bundle")
    manifest = manifests.read(tmp_path / "bundle")
    spec, stored = read_bundle_spec(tmp_path / "bundle", manifest), StoredWeights(tmp_path / "bundle", manifest)
    with pytest.raises(GraphError, match="packed rows are for GPUs"):
        build_graph(spec, stored.tensors, "onnxruntime", "0", packed=True)


def test_fp16_means_do_not_overflow(tmp_path: Path) -> None:
    """Channels beyond FP16's range in the vectors that are pooled, and sums of many tokens."""
    pipeline = save_pipeline(tmp_path, *PIPELINES["mean"]())
    edit_tensors(pipeline, scale_channels)
    export_onnx(pipeline, tmp_path / "bundle")
    texts = texts_of(5000, (30, 300, 600, 41))
    expected = np.stack([outputs["sentence_embedding"] for outputs in alone(tmp_path / "bundle", texts)])
    assert np.abs(expected).max() > 65504  # what a plain cast would make infinite
    graph = ensure_engine_graph(tmp_path / "bundle", "fp16", packed=True)
    session = RoundedGraph(tmp_path / "bundle" / graph.file)
    for run in plan_packed([len(text) for text in texts], Limits()):
        rows = lay_out(run, texts)
        (found,) = session.run(rows.input_ids, rows.attention_mask, ["sentence_embedding"])
        theirs = expected[list(run.texts)]
        off = np.abs(found.reshape(-1, found.shape[-1])[rows.starts] - theirs)
        assert (off / np.abs(expected).max(axis=0)).max() < 0.02


def scale_channels(tensors: dict[str, Any]) -> dict[str, Any]:
    (name,) = (name for name in tensors if name.endswith("final_norm.weight"))
    factors = np.where(np.arange(len(tensors[name])) % 7 == 0, 2.0**20, 1.0).astype(np.float32)
    return tensors | {name: tensors[name] * torch.from_numpy(factors)}


@pytest.mark.parametrize("sees_others", [False, True])
def test_validate_judges_packed_graphs(sees_others: bool, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    checkpoint = copy_example(tmp_path / "checkpoint")
    export_onnx(checkpoint, bundle, packed=True)
    if sees_others:  # the control: a text sees those before it in its row
        model = onnx.load(bundle / PACKED, load_external_data=False)
        (same,) = (node for node in model.graph.node if node.name == "global_attention/texts/same")
        same.op_type = "GreaterOrEqual"
        onnx.save(model, bundle / PACKED)
        rehash(bundle / PACKED)
    report = validate(bundle, checkpoint=checkpoint, max_length=300)
    verdicts = {graph.file: graph.passed for graph in report.graphs}
    assert verdicts == {"onnx/model.onnx": True, "onnx/model_ort.onnx": True, PACKED: not sees_others}
    (packed,) = (graph for graph in report.graphs if graph.file == PACKED)
    assert set(packed.by_padding) == {"none", "right"}
    assert packed.overall.rows > 40
    if sees_others:
        assert packed.diagnosis is not None
        assert {fault.kind for fault in packed.diagnosis.faults} == {"global attention"}


def test_rows_may_be_longer_than_the_tables_of_positions(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", max_position_embeddings=300)
    export_onnx(checkpoint, tmp_path / "bundle", packed=True)
    texts = texts_of(512, (300, 212, 200, 1, 1, 1))  # a row of 203 beside one of 512
    ours, theirs = packed_outputs(tmp_path / "bundle", texts), alone(tmp_path / "bundle", texts)
    for found, expected in zip(ours, theirs, strict=True):
        assert np.abs(found["logits"] - expected["logits"]).max() < 1e-5
