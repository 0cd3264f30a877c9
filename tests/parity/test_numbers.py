"""Masks of every kind, empty inputs, ids without a row, weights at the ends of float32: every graph beside PyTorch."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file, save_file

from mbexport import export_onnx, validate
from mbexport import manifest as manifests
from mbexport.bundle.half import ensure_half_graph
from mbexport.bundle.stored import StoredWeights
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.errors import CheckpointError, InputError, PrecisionError
from mbexport.parity.graphs.rounding import RoundedGraph
from mbexport.precision import codes, half, strength
from mbexport.runtime import load
from mbexport.runtime.packing import positions_of
from tests.checkpoints import EXAMPLE, edit_tensors, save_checkpoint, torch_model, torch_output
from tests.faults import constant, edit
from tests.half import ENGINE_GRAPH, write_engine_graph
from tests.inputs import allowed_error, padded_batch, run_graph
from tests.int8 import CALIBRATIONS, add_int8
from tests.parity.test_sentences import PIPELINES, save_pipeline

Array = np.ndarray[Any, Any]
Run = Callable[[Array, Array], Array]
PORTABLE, FUSED, PACKED, FP16 = (f"onnx/{name}.onnx" for name in ("model", "model_ort", "model_packed", "model_fp16"))
INT8, REDUCED = "onnx/model_int8.onnx", "onnx/model_int8_reduced.onnx"
BY_ONNX_RUNTIME = (PORTABLE, FUSED, ENGINE_GRAPH, INT8, REDUCED)  # rows of one text each
GRAPHS = (*BY_ONNX_RUNTIME, FP16)
SLOW = pytest.mark.slow
COMPUTED = (*GRAPHS, "OpenVINO", pytest.param("onnx.reference", marks=SLOW))


def with_tokenizer(checkpoint: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, checkpoint)
    return checkpoint


def all_graphs(checkpoint: Path, bundle: Path) -> Path:
    """A bundle with every kind of graph that can be run without a GPU."""
    export_onnx(with_tokenizer(checkpoint), bundle, packed=True)
    ensure_half_graph(bundle, "fp16")
    write_engine_graph(bundle, read_bundle_spec(bundle, manifests.read(bundle)))
    add_int8(bundle, Path(INT8).name)
    add_int8(bundle, Path(REDUCED).name, bits=7)
    return bundle


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a classifier by its pooling, not to be changed; its checkpoint lies beside it."""
    made: dict[str, Path] = {}

    def bundle(pooling: str) -> Path:
        if pooling not in made:
            folder = tmp_path_factory.mktemp(pooling)
            checkpoint = save_checkpoint(folder / "checkpoint", vocab_size=5000, classifier_pooling=pooling)
            made[pooling] = all_graphs(checkpoint, folder / "bundle")
        return made[pooling]

    return bundle


def runner(bundle: Path, name: str) -> Run:
    """What computes the first output of a graph, or of the portable one by another runtime."""
    if name == FP16:
        rounded = RoundedGraph(bundle / FP16)
        return lambda ids, mask: rounded.run(ids, mask)[0]
    if name == "OpenVINO":
        model = pytest.importorskip("openvino").compile_model(
            str(bundle / PORTABLE), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        return lambda ids, mask: model({"input_ids": ids, "attention_mask": mask})[0].copy()
    if name == "onnx.reference":
        evaluator = ReferenceEvaluator(str(bundle / PORTABLE))
        return lambda ids, mask: evaluator.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    return lambda ids, mask: run_graph(bundle, name, ids, mask)


@pytest.mark.parametrize("name", COMPUTED)
def test_whatever_is_not_zero_in_the_mask_is_a_token(name: str, bundle_of: Callable[[str], Path]) -> None:
    bundle = bundle_of("mean")
    run, (ids, mask) = runner(bundle, name), padded_batch(90, 5000)
    found = run(ids, mask)
    other = mask * np.array([1, 2, -1, 2**31 - 1])[:, None]  # OpenVINO takes the lower 32 bits
    assert (run(ids, other) == found).all()
    other[1, 5] = 0  # the control
    assert np.abs(run(ids, other)[1] - found[1]).max() > 1e-4


def test_pytorch_weighs_tokens_by_the_mask_in_a_mean(bundle_of: Callable[[str], Path]) -> None:
    """Where it is 2 for all tokens or none, that is the same; elsewhere graphs take each token once."""
    model, (ids, mask) = torch_model(bundle_of("mean").parent / "checkpoint"), padded_batch(90, 5000)
    found = torch_output(model, ids, mask)
    assert np.abs(torch_output(model, ids, 2 * mask) - found).max() <= allowed_error(found)
    mask[:, :9] *= 2
    assert np.abs(torch_output(model, ids, mask) - found).max() > 1e-3


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("name", COMPUTED)
def test_a_row_of_padding_only_is_finite_and_changes_no_other(
    name: str, pooling: str, bundle_of: Callable[[str], Path]
) -> None:
    run = runner(bundle_of(pooling), name)
    for length in (3, 70, 300) if name != "onnx.reference" else (70,):
        ids, mask = padded_batch(length, 5000)
        full = run(ids, mask)
        mask[2] = 0
        found = run(ids, mask)
        assert np.isfinite(found).all()
        assert np.abs(found).max() < 100
        assert np.abs(found - full)[[0, 1, 3]].max() <= (0 if name in GRAPHS else allowed_error(full))


def test_long_rows_of_padding_only(bundle_of: Callable[[str], Path]) -> None:
    """Beyond 1024 tokens global layers of the fused graph tell padding by a channel of their own."""
    for pooling in ("mean", "cls"):
        ids, mask = (x[:2] for x in padded_batch(1100, 5000))
        full = run_graph(bundle_of(pooling), FUSED, ids, mask)
        mask[1] = 0
        found = run_graph(bundle_of(pooling), FUSED, ids, mask)
        assert np.isfinite(found).all()
        assert (found[0] == full[0]).all()


@pytest.mark.parametrize("name", ["cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", "normalized"])
def test_a_row_of_padding_only_is_finite_by_every_pooling(name: str, tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path, *PIPELINES[name]())
    export_onnx(pipeline, tmp_path / "bundle")
    ids, mask = padded_batch(70, 5000)
    for graph in (PORTABLE, FUSED):
        session = onnxruntime.InferenceSession(str(tmp_path / "bundle" / graph))

        def vectors(mask: Array, session: Any = session) -> Array:
            return session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]

        full, emptied = vectors(mask), mask.copy()
        emptied[2] = 0
        found = vectors(emptied)
        assert (found[[0, 1, 3]] == full[[0, 1, 3]]).all()
        if name == "max":  # the largest of no values
            assert (found[2] == np.finfo(np.float32).min).all()
        else:
            assert np.isfinite(found).all()
            assert np.abs(found).max() < 100


def infinite_mask(model: ir.Model) -> None:
    """What hides padding is an infinity, as a careless exporter writes it."""
    (name,) = (name for name in model.graph.initializers if name.startswith("masked_bias"))
    value = model.graph.initializers[name]
    value.replace_all_uses_with(constant(model, np.full_like(value.const_value.numpy(), -np.inf)))


@pytest.mark.parametrize("name", [PORTABLE, "OpenVINO"])
def test_a_mask_of_infinities_is_found(name: str, bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    """The control: such a graph is right on every row that has a token, and NaN on one that has none.

    ONNX Runtime's Attention, which the other graphs have, gives zeros there.
    """
    bundle = Path(shutil.copytree(bundle_of("mean"), tmp_path / "bundle"))
    edit(bundle / PORTABLE, infinite_mask)
    run, (ids, mask) = runner(bundle, name), padded_batch(40, 5000)
    assert np.isfinite(run(ids, mask)).all()
    mask[2] = 0
    assert not np.isfinite(run(ids, mask)[2]).all()


def test_packed_rows_with_places_of_padding_only(bundle_of: Callable[[str], Path]) -> None:
    session = onnxruntime.InferenceSession(str(bundle_of("mean") / PACKED))

    def run(numbers: Array) -> Array:
        inputs = {"input_ids": ids, "attention_mask": numbers, "position_ids": positions_of(numbers)}
        return session.run(None, inputs)[0]

    ids, _ = padded_batch(200, 5000)
    numbers = np.repeat([[1] * 80 + [2] * 70 + [0] * 50], len(ids), axis=0)
    full, changed = run(numbers), numbers.copy()
    changed[3] = 0
    found = run(changed)
    assert np.isfinite(found).all()
    assert (found[:3] == full[:3]).all()
    seven = np.where(numbers == 2, 7, numbers)  # any number from 1 is a text's
    assert (run(seven) == full).all()
    assert np.abs(run(np.where(numbers == 2, 1, numbers)) - full).max() > 1e-3  # the control


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("shape", [(0, 70), (3, 0), (0, 0)])
def test_no_texts_or_no_tokens_are_an_error_of_the_runtime_as_of_pytorch(
    name: str, shape: tuple[int, int], bundle_of: Callable[[str], Path]
) -> None:
    ids, run = np.ones(shape, np.int64), runner(bundle_of("mean"), name)
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        run(ids, ids)
    with pytest.raises(RuntimeError, match="shape"):
        torch_output(torch_model(bundle_of("mean").parent / "checkpoint"), ids, ids)
    assert np.isfinite(run(np.ones((1, 1), np.int64), np.ones((1, 1), np.int64))).all()


@pytest.mark.parametrize("name", GRAPHS)
def test_ids_without_a_row_are_an_error_of_onnx_runtime(name: str, bundle_of: Callable[[str], Path]) -> None:
    """Those from -vocabulary to -1 count from the end, as ONNX defines Gather; PyTorch refuses them."""
    run, (ids, mask) = runner(bundle_of("mean"), name), padded_batch(70, 5000)
    for outside in (5000, -5001, 2**40):
        ids[1, 5] = outside
        with pytest.raises(Exception, match="indices element out of data bounds"):
            run(ids, mask)
    ids[1, 5] = 4999
    last = run(ids, mask)
    ids[1, 5] = -1
    assert (run(ids, mask) == last).all()
    with pytest.raises(IndexError):
        torch_output(torch_model(bundle_of("mean").parent / "checkpoint"), ids, mask)


def test_ids_of_32_bits_are_refused(bundle_of: Callable[[str], Path]) -> None:
    ids, mask = padded_batch(70, 5000)
    for graph in BY_ONNX_RUNTIME:
        with pytest.raises(Exception, match=r"Actual: \(tensor\(int32\)\) , expected: \(tensor\(int64\)\)"):
            run_graph(bundle_of("mean"), graph, ids.astype(np.int32), mask)


def denormal_logits(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Logits of a classifier that are too small for a normal float32, made of weights that are."""
    tensors["classifier.weight"] *= 1e-39
    tensors["classifier.bias"] *= 1e-39
    tensors["model.layers.1.mlp.Wi.weight"][3] *= 1e-40
    tensors["model.embeddings.tok_embeddings.weight"][20:40] *= 1e-42
    return tensors


def test_denormal_weights_are_kept_and_computed_with_as_pytorch_does(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    edit_tensors(checkpoint, denormal_logits)
    export_onnx(checkpoint, tmp_path / "bundle", packed=True)
    stored = StoredWeights(tmp_path / "bundle", manifests.read(tmp_path / "bundle"))
    own = load_file(checkpoint / "model.safetensors")
    assert (stored["classifier.weight"].T.view(np.int32) == own["classifier.weight"].numpy().view(np.int32)).all()
    rows = own["model.embeddings.tok_embeddings.weight"].numpy()
    assert 0 < np.abs(rows[20:40]).max() < np.finfo(np.float32).tiny
    assert (stored["embeddings.tok_embeddings.weight"].view(np.int32) == rows.view(np.int32)).all()
    write_engine_graph(tmp_path / "bundle", read_bundle_spec(tmp_path / "bundle", manifests.read(tmp_path / "bundle")))
    ids, mask = padded_batch(70, 512)
    ids[:, 10] = 25
    expected = torch_output(torch_model(checkpoint), ids, mask)
    assert 0 < np.abs(expected).max() < np.finfo(np.float32).tiny
    limit = 1e-4 * np.abs(expected).max()  # a denormal number has few digits
    for graph in (PORTABLE, FUSED, ENGINE_GRAPH):
        found = run_graph(tmp_path / "bundle", graph, ids, mask)
        assert np.abs(found.astype(np.float64) - expected).max() <= limit
    assert np.abs(0 - expected.astype(np.float64)).max() > limit  # the control: flushed to zero


def dead_units(value: float) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Rows and columns of matrices whose largest weight is ``value``, as pruning leaves them, and one token's row."""

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name, part in (
            ("layers.2.mlp.Wi", np.s_[3]),  # of a unit's input
            ("layers.2.mlp.Wi", np.s_[96 + 4]),  # of a unit's gate
            ("layers.1.attn.Wqkv", np.s_[5]),
            ("layers.1.attn.Wqkv", np.s_[128 + 7]),
            ("layers.1.attn.Wo", np.s_[:, 9]),
            ("layers.0.mlp.Wo", np.s_[11]),
            ("embeddings.tok_embeddings", np.s_[20]),
        ):
            weights = tensors[f"model.{name}.weight"][part]
            weights *= value / weights.abs().max()
        return tensors

    return change


def without_matrices(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Whole matrices of zeros."""
    for name in ("layers.1.attn.Wo", "layers.1.mlp.Wo", "layers.2.attn.Wqkv", "layers.3.mlp.Wi"):
        tensors[f"model.{name}.weight"].zero_()
    return tensors


def without_products(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What enters a product is denormal: one code of 8 bits would count nothing."""
    tensors["model.layers.1.mlp.Wi.weight"] *= 3e-23
    tensors["model.layers.2.mlp.Wi.weight"] *= 1e-22
    tensors["model.layers.3.mlp.Wi.weight"] *= 3e-22
    return tensors


DEAD = {
    "products": without_products,
    "zero": dead_units(0),
    "denormal": dead_units(1e-40),
    "smallest": dead_units(1.5e-45),
    "small": dead_units(1e-30),
    "whole matrices": without_matrices,
}


@pytest.mark.parametrize(
    "kind", [kind if kind in ("denormal", "products") else pytest.param(kind, marks=SLOW) for kind in DEAD]
)
def test_dead_units_in_every_precision(kind: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", vocab_size=5000)
    edit_tensors(checkpoint, DEAD[kind])
    CALIBRATIONS.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # of NumPy's: a division by zero, an overflow
        bundle = all_graphs(checkpoint, tmp_path / "bundle")
    steps = [float(site.range) / codes.MOST for site in next(iter(CALIBRATIONS.values())).sites.values()]
    assert min(steps) >= np.finfo(np.float32).tiny  # else what is divided by them is infinite
    ids, mask = padded_batch(90, 5000)
    ids[:, 10] = 20
    expected = torch_output(torch_model(checkpoint), ids, mask)
    spread = float(np.ptp(expected))
    for name in GRAPHS:
        limit = {FP16: 0.01, INT8: 0.25, REDUCED: 0.25}.get(name, 2e-5) * spread
        assert np.abs(runner(bundle, name)(ids, mask) - expected).max() <= limit, name


def test_dead_units_without_bounds_to_what_they_are_lifted_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controls: FP16's factors, and those of smoothing, as large as they would be."""
    checkpoint = with_tokenizer(save_checkpoint(tmp_path / "checkpoint", vocab_size=5000))
    edit_tensors(checkpoint, DEAD["denormal"])
    export_onnx(checkpoint, tmp_path / "bundle")
    monkeypatch.setattr(half, "MOST_LIFT", 200.0)
    with pytest.raises(PrecisionError, match=r"takes a factor of 2\*\*1"):
        ensure_half_graph(tmp_path / "bundle", "fp16")
    monkeypatch.setattr(strength, "MOST_FACTOR", 200.0)
    CALIBRATIONS.clear()
    with np.errstate(all="ignore"), pytest.raises(PrecisionError, match="leave float32 when they are smoothed"):
        add_int8(tmp_path / "bundle", Path(INT8).name)


def one_huge_weight(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors["model.layers.2.mlp.Wi.weight"][3, 5] = 3e38
    return tensors


def test_a_model_that_overflows_in_float32_is_refused_in_other_precisions(tmp_path: Path) -> None:
    checkpoint = with_tokenizer(save_checkpoint(tmp_path / "checkpoint", vocab_size=5000))
    edit_tensors(checkpoint, one_huge_weight)
    export_onnx(checkpoint, tmp_path / "bundle")
    ids, mask = padded_batch(70, 5000)
    for graph in (PORTABLE, FUSED):
        assert not np.isfinite(run_graph(tmp_path / "bundle", graph, ids, mask)).all()
    assert not np.isfinite(torch_output(torch_model(checkpoint), ids, mask)).all()
    with pytest.raises(PrecisionError, match=r"layers\.2\.mlp\.Wi_input could be beyond float32 itself"):
        ensure_half_graph(tmp_path / "bundle", "fp16")
    with pytest.raises(PrecisionError, match=r"layers\.2\.mlp\.gated is NaN or infinite on calibration text 0"):
        add_int8(tmp_path / "bundle", Path(INT8).name)
    assert not (tmp_path / "bundle" / INT8).exists()
    assert not (tmp_path / "bundle" / FP16).exists()


@SLOW
def test_one_large_weight_is_finite_in_every_precision(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", vocab_size=5000)

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.layers.2.mlp.Wi.weight"][3, 5] = 1e10
        return tensors

    edit_tensors(checkpoint, change)
    bundle = all_graphs(checkpoint, tmp_path / "bundle")
    ids, mask = padded_batch(70, 5000)
    expected = torch_output(torch_model(checkpoint), ids, mask)
    for name in GRAPHS:
        found = runner(bundle, name)(ids, mask)
        assert np.isfinite(found).all()
        if name not in (FP16, INT8, REDUCED):  # what is beside it in a row of weights they round away
            assert np.abs(found - expected).max() <= allowed_error(expected), name


@SLOW
def test_what_overflows_in_a_norm_and_comes_out_finite_is_found_by_validate(tmp_path: Path) -> None:
    """Squares of 1e30 are infinite: PyTorch's norm makes NaN of that, ONNX Runtime's zeros."""
    checkpoint = save_checkpoint(tmp_path / "checkpoint")

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.layers.2.mlp.Wo.weight"] *= 1e30
        return tensors

    edit_tensors(checkpoint, change)
    export_onnx(checkpoint, tmp_path / "bundle")
    ids, mask = padded_batch(70, 512)
    assert np.isfinite(run_graph(tmp_path / "bundle", PORTABLE, ids, mask)).all()
    assert not np.isfinite(torch_output(torch_model(checkpoint), ids, mask)).any()
    assert not validate(tmp_path / "bundle", checkpoint=checkpoint, max_length=70).passed


def test_extreme_logits_of_a_graph_have_scores(tmp_path: Path) -> None:
    checkpoint = with_tokenizer(save_checkpoint(tmp_path / "checkpoint", vocab_size=5000))

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return tensors | {"classifier.weight": tensors["classifier.weight"] * 1e37}

    edit_tensors(checkpoint, change)
    export_onnx(checkpoint, tmp_path / "bundle")
    model = load(tmp_path / "bundle")
    texts = ["The striker scored.", "", "Shares fell."]
    for answer, logits in zip(model(texts), model.logits(texts), strict=True):
        assert np.abs(logits).max() > 1e36
        assert (answer["label"], answer["score"]) == (f"LABEL_{logits.argmax()}", 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_no_number_in_any_stored_type(dtype: torch.dtype, value: float, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    path = checkpoint / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    export_onnx(checkpoint, tmp_path / "fine")
    tensors["head.dense.weight"][0, :2] = value
    tensors["head.dense.weight"][1, 0] = -value
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"head\.dense\.weight holds NaN or infinity"):
        export_onnx(checkpoint, tmp_path / "bundle")


def test_a_dense_layer_of_a_pipeline_without_numbers(tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path, *PIPELINES["dense"]())
    (file,) = pipeline.glob("*_Dense/model.safetensors")
    save_file({name: tensor / 0 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match=r"linear\.\w+ holds NaN or infinity"):
        export_onnx(pipeline, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("value", "alpha", "fits"), [(1e20, 8, False), (1e10, 1e30, False), (1e-3, 1e30, True), (1e-3, 8, True)]
)
def test_an_adapter_that_overflows_when_it_is_merged(value: float, alpha: float, fits: bool, tmp_path: Path) -> None:
    """All tensors of both are finite."""
    base, adapter = save_checkpoint(tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    module = "base_model.model.model.layers.1.mlp.Wo"
    factors = {"A": torch.full((2, 96), value), "B": torch.full((64, 2), value)}
    save_file(
        {f"{module}.lora_{name}.weight": part for name, part in factors.items()}, adapter / "adapter_model.safetensors"
    )
    settings = {"peft_type": "LORA", "task_type": "SEQ_CLS", "lora_alpha": alpha, "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    if fits:
        export_onnx(adapter, tmp_path / "bundle")
        return
    with np.errstate(all="raise"), pytest.raises(CheckpointError) as refused:
        export_onnx(adapter, tmp_path / "bundle")
    assert "layers.1.mlp.Wo.weight overflows when its change is added" in str(refused.value)
    assert not (tmp_path / "bundle").exists()


def test_codes_of_weights_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(PrecisionError, match="leave float32"):
        codes.to_codes(np.array([[1, np.inf]], np.float32))
    for value in (0, 1e-45, 1e-40, 3e38):
        matrix = np.full((3, 2), value, np.float32)
        found, scale = codes.to_codes(matrix)
        assert np.isfinite(scale).all()
        assert (scale > 0).all()
        # A denormal step has few digits, and the smallest number has none.
        assert np.abs(found * scale.astype(np.float64) - matrix).max() <= max(0.01 * value, 64e-45)


def test_no_tokens_in_a_call(bundle_of: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="item 0 has 0 tokens"):
        load(bundle_of("mean")).outputs_of_tokens([np.zeros(0, np.int64)])
