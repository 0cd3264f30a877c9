"""The graph that engines are built from: exact in float32, and in FP16 as close as FP16 can be."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Dense

from mbexport import export_onnx, manifest, validate
from mbexport.bundle.half import ensure_half_graph
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.errors import InputError, PrecisionError
from mbexport.graph.rows import MOST_SCORE
from mbexport.parity.graphs.rounding import RoundedGraph
from mbexport.parity.limits import within
from mbexport.parity.pytorch import own as own_run
from mbexport.precision import half
from tests.checkpoints import (
    EXAMPLE,
    copy_example,
    edit_config,
    edit_tensors,
    save_checkpoint,
    torch_model,
    torch_output,
)
from tests.half import ENGINE_GRAPH, make_hostile, rescale_channels, write_engine_graph
from tests.inputs import SPECIAL_LENGTHS, allowed_error, error, padded_batch, run_graph
from tests.parity.test_architectures import VARIANTS as ARCHITECTURES
from tests.parity.test_heads import VARIANTS as HEADS
from tests.parity.test_mutations import MUTATIONS, mutant
from tests.parity.test_sentences import PIPELINES, pooling, save_pipeline

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
            check_close(run_fp16(bundle, one, one_mask), torch_output(model, one, one_mask))


@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("name", [*HEADS, *ARCHITECTURES, "classification, 100 labels"])
def test_every_head_and_architecture(name: str, hostile: bool, tmp_path: Path) -> None:
    """Against the FP32 graph, which other tests hold against PyTorch."""
    variant = (HEADS | ARCHITECTURES).get(name, {"num_labels": 100})
    checkpoint = save_checkpoint(tmp_path / "checkpoint", **(variant | ({"norm_eps": 1e-20} if hostile else {})))
    if hostile:
        make_hostile(checkpoint)
    check_all_outputs(half_bundle(checkpoint, tmp_path / "bundle"), vocabulary=512)


FURTHER_PIPELINES = {
    "dense after a sum": lambda: [
        pooling("mean_sqrt_len_tokens"), Dense(64, 24, activation_function=torch.nn.Identity())
    ],
    "dense after a small sigmoid": lambda: [
        pooling("cls"), Dense(64, 24, bias=False, activation_function=torch.nn.Sigmoid()), Dense(24, 8)
    ],
}  # fmt: skip


NOT_SATURATED = ("mean", "dense without bias or activation", "two dense layers", "dense after a sum")


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        *((name, 1.0) for name in (*PIPELINES, *FURTHER_PIPELINES)),
        *((name, 2.0**-20) for name in (*NOT_SATURATED, "dense after a small sigmoid")),
        *((name, 2.0**18) for name in NOT_SATURATED),
    ],
)
def test_every_sentence_pipeline(name: str, factor: float, tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path, *(PIPELINES | FURTHER_PIPELINES)[name]())
    scale_tensors(pipeline, {"final_norm.weight": factor})
    check_all_outputs(half_bundle(pipeline, tmp_path / "bundle"), vocabulary=5000)


def test_a_sum_over_tokens_may_grow_with_their_number(tmp_path: Path) -> None:
    bundle = half_bundle(save_pipeline(tmp_path, *FURTHER_PIPELINES["dense after a sum"]()), tmp_path / "bundle")
    values = json.loads((bundle / "reports/precision-fp16.json").read_text())["values"]
    bound = {value["name"]: value["bound"] for value in values}
    ids, mask = np.full((1, 2048), 7), np.ones((1, 2048), np.int64)  # one token over and over: the sum is the largest
    session = onnxruntime.InferenceSession(str(bundle / "onnx/model.onnx"))
    (hidden,) = session.run(["last_hidden_state"], {"input_ids": ids, "attention_mask": mask})
    assert np.abs(hidden.sum(axis=1)).max() / np.sqrt(2048) <= bound["2_Dense.linear.in"]
    assert np.abs(hidden).max() > bound["2_Dense.linear.in"] / 2048  # the control: it is no bound of everything


def scale_tensors(checkpoint: Path, factors: dict[str, float]) -> None:
    """Multiply the tensors whose names end so."""

    def scaled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name, tensor in tensors.items():
            for ending, factor in factors.items():
                if name.endswith(ending):
                    tensor.mul_(factor)
        return tensors

    edit_tensors(checkpoint, scaled)


# Each is one thing that FP16 cannot take, and the limits without which the graph takes it as it comes.
FAULTS: dict[str, tuple[dict[str, Any], dict[str, float], dict[str, float]]] = {
    "activations overflow, weights do not": (
        {"hidden_activation": "relu"}, {"mlp.Wi.weight": 2.0**9, "mlp.Wo.weight": 2.0**-18}, {"LIMIT": 2.0**100}
    ),
    "activations vanish": (
        {}, {"mlp.Wi.weight": 2.0**-16, "mlp.Wo.weight": 2.0**33}, {"LEAST_BOUND": 2.0**-100, "LEAST_WEIGHT": 2.0**-100}
    ),
    "normalized values vanish": (
        {"norm_eps": 1e-20}, {"mlp_norm.weight": 2.0**-24, "mlp.Wi.weight": 2.0**24},
        {"LEAST_BOUND": 2.0**-100, "MOST_WEIGHT": 2.0**100},
    ),
    "logits of a tied decoder overflow": (
        {"architecture": "ModernBertForMaskedLM"}, {"head.norm.weight": 2.0**14}, {"LIMIT": 2.0**100}
    ),
    "rows of the embeddings vanish": (
        {"norm_eps": 1e-20}, {"tok_embeddings.weight": 2.0**-26}, {"LEAST_WEIGHT": 2.0**-100}
    ),
    "the head's product overflows, what enters it does not": (
        {}, {"final_norm.weight": 2.0**11, "head.dense.weight": 2.0**6}, {"LIMIT": 2.0**100}
    ),
    "the head overflows": (
        {}, {"final_norm.weight": 2.0**17, "head.dense.weight": 2.0**-17},
        {"LIMIT": 2.0**100, "LEAST_WEIGHT": 2.0**-100},
    ),
    "one head's classifier overflows": (
        {"num_labels": 100}, {"head.norm.weight": 2.0**16, "classifier.weight": 2.0**-8}, {"LIMIT": 2.0**100}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_met_by_its_own_limit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, factors, limits = FAULTS[name]
    checkpoint = save_checkpoint(tmp_path / "checkpoint", **config)
    scale_tensors(checkpoint, factors)
    check_all_outputs(half_bundle(checkpoint, tmp_path / "bundle"), vocabulary=512)
    for limit, value in limits.items():
        monkeypatch.setattr(half, limit, value)
    with pytest.raises((AssertionError, PrecisionError)):
        check_all_outputs(half_bundle(checkpoint, tmp_path / "naive"), vocabulary=512)


def test_without_rounding_an_overflow_passes_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why FP16 graphs are not compared as ONNX Runtime's CPU provider runs them."""
    monkeypatch.setattr(half, "LIMIT", 2.0**100)
    checkpoint = save_checkpoint(tmp_path / "checkpoint", hidden_activation="relu")
    scale_tensors(checkpoint, {"mlp.Wi.weight": 2.0**9, "mlp.Wo.weight": 2.0**-18})
    bundle = half_bundle(checkpoint, tmp_path / "bundle")
    ids, mask = padded_batch(100, 512)
    assert np.isfinite(run_graph(bundle, FP16, ids, mask)).all()
    assert not np.isfinite(run_fp16(bundle, ids, mask)).all()


@pytest.mark.parametrize(("factor", "held"), [(8.0, True), (200.0, False)])
def test_scores_are_bounded_and_padding_never_matters(factor: float, held: bool, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", classifier_pooling="mean")
    edit_tensors(checkpoint, lambda tensors: {
        name: torch.cat([tensor[:128] * factor, tensor[128:]]) if name.endswith("Wqkv.weight") else tensor
        for name, tensor in tensors.items()
    })  # fmt: skip
    bundle = half_bundle(checkpoint, tmp_path / "bundle")
    values = json.loads((bundle / "reports/precision-fp16.json").read_text())["values"]
    scores = [value for value in values if value["name"].endswith("scores")]
    assert all(value["held"] is held for value in scores)
    assert all((value["bound"] <= MOST_SCORE) is held for value in scores)
    if held:
        assert max(value["bound"] for value in scores) > MOST_SCORE / 4  # near what may be
        ids, mask = padded_batch(190, 512)
        other = np.where(mask == 1, ids, ids[::-1, ::-1])
        np.testing.assert_array_equal(run_fp16(bundle, ids, mask), run_fp16(bundle, other, mask))


def test_scores_bound_is_above_what_a_forward_pass_reaches(tmp_path: Path) -> None:
    variant = ARCHITECTURES["all biases"]
    checkpoint = save_checkpoint(tmp_path / "checkpoint", **variant)
    values = json.loads((half_bundle(checkpoint, tmp_path / "b") / "reports/precision-fp16.json").read_text())["values"]
    bound = {value["name"]: value["bound"] for value in values}
    model = torch_model(checkpoint)
    ids, mask = padded_batch(190, 512)
    seen = {}
    for layer, module in enumerate(model.model.layers):

        def note(_: object, __: object, output: torch.Tensor, layer: int = layer) -> None:
            q, k, _v = output.detach().reshape(*output.shape[:2], 3, 4, 16).unbind(2)
            seen[layer] = float((q.norm(dim=-1).amax((0, 1)) * k.norm(dim=-1).amax((0, 1))).max() / 4)

        module.attn.Wqkv.register_forward_hook(note)
    model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    for layer, largest in seen.items():
        assert largest <= bound[f"layers.{layer}.attn.scores"] <= 30 * largest


def test_yarn_does_not_hide_what_stands_before_it(tmp_path: Path) -> None:
    """Products overflow before the rotation, whose factor makes them small."""
    variant = json.loads(json.dumps(ARCHITECTURES["yarn on global layers"]))
    variant["rope_parameters"]["full_attention"]["attention_factor"] = 1e-5
    checkpoint = save_checkpoint(tmp_path / "checkpoint", **variant)
    edit_tensors(checkpoint, lambda tensors: {
        name: torch.cat([tensor[:128] * 200_000, tensor[128:]]) if "layers.0.attn.Wqkv" in name else tensor
        for name, tensor in tensors.items()
    })  # fmt: skip
    check_all_outputs(half_bundle(checkpoint, tmp_path / "bundle"), vocabulary=512)


@pytest.mark.parametrize(("labels", "keep", "kind"), [(3, [], "FLOAT"), (100, [], "FLOAT16"), (100, ["head"], "FLOAT")])
def test_classifier_of_few_outputs_stays_float32(labels: int, keep: list[str], kind: str, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", num_labels=labels)
    bundle = half_bundle(checkpoint, tmp_path / "bundle", keep_fp32=keep)
    tensors = onnx.load(bundle / FP16, load_external_data=False).graph.initializer
    (classifier,) = [tensor for tensor in tensors if tensor.name == "classifier.weight"]
    assert classifier.data_type == getattr(onnx.TensorProto, kind)


UNTIED = [name for name in (*HEADS, *ARCHITECTURES) if not name.startswith("masked LM") or "untied" in name]


@pytest.mark.parametrize("seed", range(12))
def test_channels_of_any_size(seed: int, tmp_path: Path) -> None:
    """Exact rescalings at random, of random models; without levelling they are lost."""
    rng = np.random.default_rng(seed)
    variant = (HEADS | ARCHITECTURES)[UNTIED[int(rng.integers(len(UNTIED)))]]
    checkpoint = save_checkpoint(tmp_path / "checkpoint", seed=seed, **(variant | {"norm_eps": 1e-30}))
    export_onnx(checkpoint, tmp_path / "before")
    rescale_channels(checkpoint, seed, span=int(rng.choice([3, 8, 14, 20])))
    bundle = half_bundle(checkpoint, tmp_path / "bundle")
    ids, mask = padded_batch(66, 512)
    as_it_was = run_graph(tmp_path / "before", "onnx/model.onnx", ids, mask)
    np.testing.assert_array_equal(run_graph(bundle, "onnx/model.onnx", ids, mask), as_it_was)
    check_all_outputs(bundle, vocabulary=512)


def test_levels_are_what_saves_channels_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", norm_eps=1e-30)
    rescale_channels(checkpoint, seed=0, span=14)
    check_all_outputs(half_bundle(checkpoint, tmp_path / "bundle"), vocabulary=512)
    monkeypatch.setattr(half, "MOST_SPREAD", 100.0)
    monkeypatch.setattr(half, "LIMIT", 2.0**115)
    with pytest.raises((AssertionError, PrecisionError)):
        check_all_outputs(half_bundle(checkpoint, tmp_path / "naive"), vocabulary=512)


def test_attention_stays_in_half_precision_where_its_projections_do_not(tmp_path: Path) -> None:
    """It has a fused kernel there, and none in FP32."""
    bundle = half_bundle(
        save_checkpoint(tmp_path / "checkpoint"), tmp_path / "bundle", keep_fp32=["layers.0", "layers.2.attn"]
    )
    graph = onnx.load(bundle / FP16, load_external_data=False).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    attention = [node.output[0] for node in graph.node if node.op_type == "Attention"]
    assert [types[name] for name in attention] == [onnx.TensorProto.FLOAT16] * 4


def run_fp16(bundle: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The first output of the FP16 graph, every value rounded."""
    return RoundedGraph(bundle / FP16).run(ids, mask)[0]


def check_all_outputs(bundle: Path, vocabulary: int) -> None:
    exact, as_it_is = (onnxruntime.InferenceSession(str(bundle / file)) for file in ("onnx/model.onnx", FP16))
    assert [output.name for output in as_it_is.get_outputs()] == [output.name for output in exact.get_outputs()]
    assert [output.shape for output in as_it_is.get_outputs()] == [output.shape for output in exact.get_outputs()]
    found = RoundedGraph(bundle / FP16)
    half_window = read_bundle_spec(bundle, manifest.read(bundle)).half_window
    for length in (1, 66, 190):
        ids, mask = sighted(*padded_batch(length, vocabulary), half_window)
        inputs = {"input_ids": ids, "attention_mask": mask}
        for a, b in zip(exact.run(None, inputs), found.run(ids, mask), strict=True):
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
    check_close(run_fp16(bundle, ids, mask), expected)
    report = json.loads((bundle / "reports/precision-fp16.json").read_text())
    shifted = {value["name"].split(".", 2)[-1] for value in report["values"] if value["shift"]}
    assert {"embeddings", "attn.in", "mlp.in", "attn.qk", "attn.v", "attn.Wo", "mlp.gate", "mlp.Wo"} <= shifted

    monkeypatch.setattr(half, "LIMIT", 2.0**100)  # the control: the same graph, nothing taken out for its size
    monkeypatch.setattr(half, "MOST_WEIGHT", 2.0**100)
    naive = half_bundle(checkpoint, tmp_path / "naive")
    assert not np.isfinite(run_fp16(naive, ids, mask)).all()


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
    parity, own = report.graphs[2], report.half
    assert own is not None
    assert "float16" in own.what
    assert parity.limits["max_error"] == 2 * own.max_error
    assert parity.limits["cosine"] == 0.9999  # PyTorch's own is nearer
    assert parity.limits["agreement"] == 1 - 1 / parity.overall.rows
    assert parity.ratio == parity.overall.max_error / own.max_error
    assert [graph.ratio for graph in report.graphs[:2]] == [None, None]
    assert set(report.skipped) == {"onnx/model_bf16.onnx"}


def test_where_pytorch_own_half_precision_overflows_the_usual_limits_hold(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", norm_eps=1e-20)
    make_hostile(checkpoint)
    report = validate(half_bundle(checkpoint, tmp_path / "bundle"), checkpoint=checkpoint, max_length=66)
    parity, own = report.graphs[2], report.half
    assert own is not None
    assert own.max_error == float("inf")
    assert "it overflows" in own.what
    assert parity.limits == {"max_error": 0.02 * parity.spread, "cosine": 0.9999, "agreement": 0.999}
    assert parity.ratio is None
    assert np.isfinite(parity.overall.max_error)


def test_own_run_is_shorter_than_the_comparison_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_run, "LONGEST_ON_CPU", 64)
    report = validate(half_bundle(EXAMPLE, tmp_path / "bundle"), checkpoint=EXAMPLE, max_length=66)
    assert report.half is not None
    assert report.half.what.endswith("on inputs of up to 64 tokens")
    assert report.longest > 64


def test_validate_finds_a_fault_of_the_fp16_graph_alone(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    export_onnx(checkpoint, tmp_path / "bundle")
    edit_config(tmp_path / "bundle", lambda config: config.update(local_attention=126))
    ensure_half_graph(tmp_path / "bundle", "fp16")
    report = validate(tmp_path / "bundle", checkpoint=checkpoint, max_length=300)
    assert [graph.passed for graph in report.graphs] == [True, True, False]
    assert not report.passed


def test_a_window_off_by_one_fails_though_it_costs_less_than_rounding_may(tmp_path: Path) -> None:
    """The example's outputs keep their limits with it; a layer's do not, so stages are looked at unasked."""
    copy = copy_example(tmp_path / "checkpoint")
    edit_config(copy, lambda config: config.update(local_attention=126))
    bundle = half_bundle(copy, tmp_path / "bundle")
    report = validate(bundle, checkpoint=EXAMPLE, max_length=129)
    parity = next(parity for parity in report.graphs if parity.file == FP16)
    assert within(parity.overall, parity.limits)
    assert not parity.passed
    assert parity.diagnosis is not None
    assert parity.diagnosis.faults[0].cause == "window"
    right = validate(half_bundle(EXAMPLE, tmp_path / "right"), checkpoint=EXAMPLE, max_length=129)
    assert right.passed
