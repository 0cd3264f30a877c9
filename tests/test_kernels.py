"""mbexport's kernels against their definitions in float64, and graphs with them against the same graphs without."""

from __future__ import annotations

import math
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from mbexport import export_onnx
from mbexport.errors import InputError
from mbexport.graph import encoder
from mbexport.runtime import kernels as module
from mbexport.runtime.backends.ort import OnnxRuntimeBackend, session_options
from mbexport.runtime.kernels import NAMES, VARIABLE, kernels
from tests.checkpoints import save_checkpoint
from tests.int8 import add_int8

Array = npt.NDArray[Any]
TYPES = {"float32": TensorProto.FLOAT, "bool": TensorProto.BOOL, "uint8": TensorProto.UINT8, "int64": TensorProto.INT64}
PLAN = 8  # inputs of LocalAttention that the kernel does not read
HEADS = 2


def usable() -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(VARIABLE, raising=False)
        best = kernels().name
    return [] if best is None else list(NAMES[NAMES.index(best) :])


@pytest.fixture(params=NAMES)
def chosen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param not in usable():
        pytest.skip(f"{request.param}: {kernels()}")
    monkeypatch.setenv(VARIABLE, request.param)
    yield request.param
    monkeypatch.undo()
    kernels()


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="no kernels for this system")
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_they_were_built() -> None:
    """Or else the tests below were skipped without a word."""
    assert usable()


def compute(operator: str, inputs: list[Array], outputs: list[str], **attributes: float) -> list[Array]:
    """One node of the domain, alone; ``outputs`` are element types, empty for what is left out."""
    names = [f"in{number}" for number in range(len(inputs))]
    results = [f"out{number}" if kind else "" for number, kind in enumerate(outputs)]
    node = onnx.helper.make_node(operator, names, results, domain="mbexport", **attributes)
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [
            onnx.helper.make_tensor_value_info(name, TYPES[str(x.dtype)], [None] * x.ndim)
            for name, x in zip(names, inputs, strict=True)
        ],
        [
            onnx.helper.make_tensor_value_info(name, TYPES[kind], None)
            for name, kind in zip(results, outputs, strict=True)
            if kind
        ],
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("mbexport", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = session_options(as_written=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, dict(zip(names, inputs, strict=True)))
    return found


def attention_inputs(batch: int, length: int, head: int, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    q, k, v = rng.standard_normal((3, batch, length, HEADS * head)).astype(np.float32) * 2
    angles = np.arange(length + 3)[:, None] * 100.0 ** -(np.arange(head // 2) / (head // 2))
    real = rng.random((batch, length)) < 0.7
    return [q, k, v, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), real]


def attend(inputs: list[Array], reach: int) -> Array:
    """By definition, in float64."""
    q, k, v = (x.astype(np.float64).reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2) for x in inputs[:3])
    length, half = q.shape[2], q.shape[3] // 2
    cos, sin = (np.concatenate([x[:length]] * 2, axis=-1).astype(np.float64) for x in inputs[3:5])
    q, k = (x * cos + np.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sin for x in (q, k))
    places = np.arange(length)
    near = np.abs(places[:, None] - places) <= (length if reach < 0 else reach)
    seen = near & inputs[5][:, None, None, :]
    scores = np.where(seen, q @ k.swapaxes(-1, -2) / math.sqrt(2 * half), -1e300)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))  # equal where nothing is seen
    out = shares / shares.sum(axis=-1, keepdims=True) @ v
    return out.swapaxes(1, 2).reshape(inputs[0].shape)


def local(inputs: list[Array], reach: int, head: int) -> Array:
    plan = [np.zeros(0, np.float32)] * PLAN
    return compute("LocalAttention", [*inputs, *plan], ["float32"], heads=HEADS, reach=reach, scale=head**-0.5)[0]


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("head", [32, 64, 96, 128])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 47, 48, 49, 66, 130, 193, 400])
def test_attention_is_as_defined(length: int, head: int) -> None:
    inputs = attention_inputs(2, length, head)
    for reach in (0, 1, 64, 65):
        assert np.abs(local(inputs, reach, head) - attend(inputs, reach)).max() < 2e-5, reach
    plan = [np.zeros(0, np.float32)] * 5
    found = compute("GlobalAttention", [*inputs, *plan], ["float32"], heads=HEADS, scale=head**-0.5)[0]
    assert np.abs(found - attend(inputs, -1)).max() < 2e-5
    if length > 66:  # the control: a window off by one is seen
        assert np.abs(local(inputs, 64, head) - attend(inputs, 65)).max() > 1e-3


@pytest.mark.usefixtures("chosen")
def test_queries_that_see_no_key_take_the_mean_of_all_values() -> None:
    inputs = attention_inputs(2, 200, 64)
    inputs[5][0] = np.arange(200) >= 150
    inputs[5][1] = False
    found = local(inputs, 64, 64)
    assert np.abs(found - attend(inputs, 64)).max() < 2e-5
    assert np.abs(found[1] - inputs[2][1].mean(axis=0)).max() < 1e-5


@pytest.mark.usefixtures("chosen")
def test_attention_says_what_is_not_a_number() -> None:
    clean = attention_inputs(2, 100, 64)
    clean[5][:] = True
    for which, value in ((0, np.nan), (1, np.nan), (2, np.nan), (0, np.inf), (2, np.inf)):
        inputs = [x.copy() for x in clean]
        inputs[which][0, 50, 3] = value
        found = local(inputs, 64, 64)
        assert not np.isfinite(found[0, 50]).all()
        assert np.array_equal(found[1], local(clean, 64, 64)[1])  # the other text is as it was


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("length", [1, 3])
def test_where_all_scores_are_minus_infinity_there_is_no_softmax(length: int) -> None:
    inputs = attention_inputs(2, length, 64)
    for array, value in zip(inputs, (1e25, -1e25, None, 1, 0, True), strict=True):
        if value is not None:
            array[:] = value
    assert np.isnan(local(inputs, 64, 64)).all()
    inputs[5][1] = False  # a text of padding only takes the mean of its values
    found = local(inputs, 64, 64)
    assert np.isnan(found[0]).all()
    assert np.abs(found[1] - inputs[2][1].mean(axis=0)).max() < 1e-6


@pytest.mark.usefixtures("chosen")
def test_no_reach_is_too_far() -> None:
    inputs = attention_inputs(1, 200, 64)
    far = local(inputs, 2**63 - 1, 64)
    np.testing.assert_array_equal(far, local(inputs, 200, 64))
    assert np.abs(far - local(inputs, 64, 64)).max() > 0.1  # the control


@pytest.mark.usefixtures("chosen")
def test_scores_far_apart_stay_finite() -> None:
    inputs = attention_inputs(1, 300, 64)
    inputs[0] *= 1e4
    found = local(inputs, 64, 64)
    assert np.isfinite(found).all()
    assert np.abs(found - attend(inputs, 64)).max() < 0.2  # scores of 1e5 are exact to 1e-2


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("shape", [(1, 1, 16), (3, 7, 768), (2, 5, 1152)])
def test_sum_and_norm_are_as_defined(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, update = rng.standard_normal((2, *shape)).astype(np.float32) * 3 + 1
    weight = rng.standard_normal(shape[-1]).astype(np.float32)
    total, normed = compute("AddNorm", [x, update, weight], ["float32"] * 2, epsilon=1e-5)
    exact = x.astype(np.float64) + update
    centred = exact - exact.mean(axis=-1, keepdims=True)
    assert np.array_equal(total, x + update)
    wanted = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * weight
    assert np.abs(normed - wanted).max() < 1e-5
    assert np.abs(normed + weight - wanted).max() > 1e-2  # the control


@pytest.mark.usefixtures("chosen")
def test_gelu_is_as_defined_everywhere() -> None:
    x = np.concatenate([np.linspace(-12, 12, 40_000), 10.0 ** np.arange(-30, 30), -(10.0 ** np.arange(-30, 30))])
    x = np.resize(x, (5, 8032)).astype(np.float32)
    gate = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    found = compute("GatedGelu", [x, gate], ["float32"])[0]
    erf = np.vectorize(math.erf)(x.astype(np.float64) / math.sqrt(2))
    wanted = 0.5 * x.astype(np.float64) * (1 + erf) * gate
    assert (np.abs(found - wanted) <= 3e-7 * np.maximum(1, np.abs(x * gate))).all()
    assert not (np.abs(found - wanted * 1.00001) <= 3e-7 * np.maximum(1, np.abs(x * gate))).all()  # the control
    odd = np.array([[np.nan, np.inf, -np.inf, 0] * 4], np.float32)
    found = compute("GatedGelu", [odd, np.ones_like(odd)], ["float32"])[0][0, :4]
    assert np.isnan(found[0])
    assert found[1] == np.inf
    assert found[3] == 0


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("levels", [127.0, 63.0])
def test_codes_are_as_defined(levels: float) -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 48)).astype(np.float32)
    x[0, 0] = 0
    x[0, 1] *= 1e20
    codes, largest = compute("CodesOfRows", [x], ["uint8", "float32"], levels=levels)
    wanted = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-30))
    assert np.array_equal(largest, wanted)
    assert np.abs(codes - (x.astype(np.float64) / wanted * levels + levels + 1)).max() <= 0.5 + 1e-4
    assert codes.max() == 2 * levels + 1 or codes.min() == 1
    x[1, 3, 5] = np.nan
    x[1, 4, 5] = -np.inf
    largest = compute("CodesOfRows", [x], ["uint8", "float32"], levels=levels)[1]
    assert (~np.isfinite(largest[..., 0])).nonzero()[1].tolist() == [3, 4]


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("by_step", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_codes_of_a_norm_are_as_if_made_apart(scaled: bool, by_step: bool) -> None:
    rng = np.random.default_rng(0)
    x, update = rng.standard_normal((2, 3, 11, 64)).astype(np.float32) * 3
    weight, step = rng.standard_normal(64).astype(np.float32), np.float32(0.013)
    factors = rng.random((3, 11, 1)).astype(np.float32)
    name, inputs, kinds = "AddNormCodes", [x, update, weight], ["float32", "float32", "uint8"]
    given = update
    if scaled:
        name, kinds, given = f"Scaled{name}", ["float32", *kinds], update * factors
        inputs.append(factors)
    if by_step:
        inputs.append(np.array(step))
    else:
        name, kinds = f"{name}OfRows", [*kinds, "float32"]
    found = compute(name, inputs, kinds, epsilon=1e-5, levels=127.0)
    read = ["", "float32", "", *kinds[3:]] if scaled else ["float32", "", *kinds[2:]]
    for one, kept in zip(
        compute(name, inputs, read, epsilon=1e-5, levels=127.0),
        (result for result, kind in zip(found, read, strict=True) if kind),
        strict=True,
    ):
        np.testing.assert_array_equal(one, kept)
    total, normed = compute("AddNorm", [x, given, weight], ["float32"] * 2, epsilon=1e-5)
    wanted = [given, total, normed] if scaled else [total, normed]
    if by_step:
        exact = np.clip(normed.astype(np.float64) / step + 128, 0, 255)
        assert exact.min() == 0  # both ends are reached
        assert exact.max() == 255
        assert np.abs(found[-1] - exact).max() <= 0.5 + 1e-4
        assert np.abs(found[-1] - np.clip(exact + 1, 0, 255)).max() > 1  # the control
        found.pop()
    else:
        wanted += compute("CodesOfRows", [normed], ["uint8", "float32"], levels=127.0)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("chosen")
def test_codes_of_a_gated_value_are_as_if_made_apart() -> None:
    x, gate = np.random.default_rng(0).standard_normal((2, 3, 11, 48)).astype(np.float32) * 2
    gated = compute("GatedGelu", [x, gate], ["float32"])[0]
    wanted = [gated, *compute("CodesOfRows", [gated], ["uint8", "float32"], levels=63.0)]
    found = compute("GatedGeluCodesOfRows", [x, gate], ["float32", "uint8", "float32"], levels=63.0)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    alone = compute("GatedGeluCodesOfRows", [x, gate], ["", "uint8", "float32"], levels=63.0)
    for one, other in zip(alone, found[1:], strict=True):
        np.testing.assert_array_equal(one, other)
    step = np.float32(0.02)
    found = compute("GatedGeluCodes", [x, gate, np.array(step)], ["float32", "uint8"], levels=127.0)
    alone = compute("GatedGeluCodes", [x, gate, np.array(step)], ["", "uint8"], levels=127.0)
    np.testing.assert_array_equal(alone[0], found[1])
    np.testing.assert_array_equal(found[0], gated)
    assert np.abs(found[1] - np.clip(gated.astype(np.float64) / step + 128, 0, 255)).max() <= 0.5 + 1e-4
    assert np.abs(found[1] - np.clip(x.astype(np.float64) / step + 128, 0, 255)).max() > 1  # the control


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize(
    ("rows", "depth", "width"),
    [
        (1, 16, 16),
        (5, 32, 48),
        (8, 768, 96),
        (9, 784, 112),
        (128, 48, 80),
        (129, 64, 64),
        (300, 32, 48),
        (31, 1552, 64),
    ],
)
def test_products_equal_their_definition(rows: int, depth: int, width: int) -> None:
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, depth)).astype(np.float32)
    weights = rng.standard_normal((depth, width)).astype(np.float32)
    found = compute("Product", [x, weights], ["float32"])[0]
    exact = x.astype(np.float64) @ weights
    assert found.shape == exact.shape
    assert np.abs(found - exact).max() < 1e-6 * depth
    controls = [x @ weights[::-1], x @ weights[:, ::-1], *([x[::-1] @ weights] if rows > 1 else [])]
    assert all(np.abs(control - exact).max() > 1 for control in controls)
    apart = compute("Product", [x[-1:], weights], ["float32"])[0]
    np.testing.assert_array_equal(apart, found[-1:])  # whatever else is in a batch
    x[0, 0] = np.nan
    spoiled = compute("Product", [x[None, None], weights], ["float32"])[0]
    assert spoiled.shape == (1, 1, rows, width)
    assert np.isnan(spoiled[0, 0, 0]).all()
    np.testing.assert_array_equal(spoiled[0, 0, 1:], found[1:])


def refused(operator: str, inputs: list[Array], outputs: list[str], says: str, **attributes: float) -> None:
    with pytest.raises(Exception, match=says):
        compute(operator, inputs, outputs, **attributes)


@pytest.mark.usefixtures("chosen")
def test_sizes_that_do_not_fit_are_refused() -> None:
    good, plan = attention_inputs(2, 20, 64), [np.zeros(0, np.float32)] * PLAN
    local(good, 64, 64)

    def attention(says: str, heads: int = HEADS, **changed: Array) -> None:
        names = ("q", "k", "v", "cos", "sin", "real")
        inputs = [changed.get(name, x) for name, x in zip(names, good, strict=True)]
        refused("LocalAttention", [*inputs, *plan], ["float32"], says, heads=heads, reach=64, scale=0.1)

    attention("must be .batch, sequence, hidden. alike", k=good[1][:, :10])
    attention("must be .batch, sequence, hidden. alike", v=good[2][:1])
    attention("wide", heads=0)
    attention("wide", heads=-2)
    attention("wide", heads=8)
    attention("as many positions as tokens", cos=good[3][:19], sin=good[4][:19])
    attention("as many positions as tokens", cos=good[3][:, :16], sin=good[4][:, :16])
    attention("as many positions as tokens", sin=good[4][:21])
    attention("the mask must be", real=good[5][:, :19])
    attention("axes", real=np.zeros((2, 20, 1, 1, 1), bool))
    x, w = np.zeros((2, 16), np.float32), np.zeros(16, np.float32)
    refused("AddNorm", [x, x[:1], w], ["float32"] * 2, "alike", epsilon=1e-5)
    refused("AddNorm", [x, x, w[:8]], ["float32"] * 2, "alike", epsilon=1e-5)
    refused("AddNorm", [x[:, :8], x[:, :8], w[:8]], ["float32"] * 2, "multiple of 16", epsilon=1e-5)
    square = np.zeros((16, 16), np.float32)
    for one, other in ((x, w), (x, square[:8]), (x, square[None]), (x[:, :0], square[:0])):
        refused("Product", [one, other], ["float32"], "must be .* and .in, out.")
    for one, other in ((x, square[:, :8]), (x[:, :8], square[:8])):
        refused("Product", [one, other], ["float32"], "multiple of 16")
    refused("GatedGelu", [x, x[:1]], ["float32"], "alike")
    refused("GatedGelu", [x[:, :8], x[:, :8]], ["float32"], "multiple of 16")
    refused("ScaledAddNormCodesOfRows", [x, x, w, x[:1, :1]], ["float32"] * 3 + ["uint8", "float32"], "factor for each",
            epsilon=1e-5, levels=127.0)  # fmt: skip
    refused("GatedGeluCodes", [x, x, w], ["float32", "uint8"], "one step", levels=127.0)
    refused("CodesOfRows", [x[:, :8]], ["uint8", "float32"], "multiple of 16", levels=127.0)


@pytest.mark.usefixtures("chosen")
def test_nothing_gives_nothing() -> None:
    assert (
        local([x[:0] if x.ndim == 3 or x.dtype == bool else x for x in attention_inputs(2, 20, 64)], 64, 64).size == 0
    )
    empty = np.zeros((0, 16), np.float32)
    assert compute("GatedGelu", [empty, empty], ["float32"])[0].shape == (0, 16)
    assert compute("Product", [empty[None], np.ones((16, 32), np.float32)], ["float32"])[0].shape == (1, 0, 32)


def logits(graph: Path, ids: Array, mask: Array) -> Array:
    return OnnxRuntimeBackend(graph, 2, as_written=True).run(ids, mask)["logits"]


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("length", [1, 65, 66, 130, 300, 1100])
def test_graphs_answer_as_without_kernels(length: int, example_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(length)
    ids, mask = rng.integers(5, 1000, (3, length)), np.ones((3, length), np.int64)
    mask[1, length // 2 + 1 :] = 0
    mask[2, : length // 3] = 0
    graph = example_bundle / "onnx/model_ort.onnx"
    with_kernels = logits(graph, ids, mask)
    monkeypatch.setenv(VARIABLE, "off")
    without = logits(graph, ids, mask)
    assert np.abs(with_kernels - without).max() < 2e-5 * np.abs(without).max()
    if length > 2:
        assert np.abs(with_kernels - logits(graph, ids, np.ones_like(mask))).max() > 1e-3  # the control


@pytest.mark.usefixtures("chosen")
def test_a_graph_of_every_bundle_calls_the_kernels(example_bundle: Path, tmp_path: Path) -> None:
    """What ONNX Runtime computes, by its own record: no node of a function's body."""
    options = session_options(as_written=True)
    options.optimized_model_filepath = str(tmp_path / "resolved.onnx")
    onnxruntime.InferenceSession(str(example_bundle / "onnx/model_ort.onnx"), options)
    nodes = onnx.load(tmp_path / "resolved.onnx", load_external_data=False).graph.node
    kinds = [node.op_type for node in nodes]
    wanted = {"LocalAttention": 4, "GlobalAttention": 2, "AddNorm": 12, "GatedGelu": 6, "Product": 42}
    assert {kind: kinds.count(kind) for kind in wanted} == wanted
    assert not [node.name for node in nodes if node.op_type == "MatMul" and node.name.startswith("layers.")]
    assert not {"Attention", "MultiHeadAttention", "RotaryEmbedding", "If"} & set(kinds)


@pytest.fixture(scope="module")
def example_int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's bundle with INT8 graphs of 8 and 7 bits."""
    bundle = tmp_path_factory.mktemp("int8") / "bundle"
    export_onnx("examples/news_topics/checkpoint", bundle)
    add_int8(bundle, "model_int8.onnx")
    add_int8(bundle, "model_int8_reduced.onnx", bits=7)
    return bundle


@pytest.mark.parametrize(("name", "bits"), [("model_int8.onnx", 8), ("model_int8_reduced.onnx", 7)])
def test_joined_calls_compute_what_they_were_made_of(
    name: str, bits: int, example_int8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers, without kernels to the last bit; fewer nodes, and no result that nothing reads."""
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(5, 1000, (3, 150)), np.ones((3, 150), np.int64)
    mask[1, 100:] = 0
    joined = example_int8 / "onnx" / name
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "join_codes", lambda _: None)
        add_int8(example_int8, f"apart_{name}", bits=bits)
    apart = example_int8 / "onnx" / f"apart_{name}"
    with_kernels = logits(joined, ids, mask)
    monkeypatch.setenv(VARIABLE, "off")
    np.testing.assert_array_equal(logits(joined, ids, mask), logits(apart, ids, mask))
    assert np.abs(with_kernels - logits(apart, ids, mask)).max() < 0.05 * np.abs(with_kernels).max()
    assert np.abs(with_kernels - logits(apart, ids, np.ones_like(mask))).max() > 0.1 * np.abs(with_kernels).max()
    graphs = [onnx.load(file, load_external_data=False).graph for file in (joined, apart)]
    assert len(graphs[0].node) < len(graphs[1].node) - 15
    names = ("AddNormCodes", "ScaledAddNormCodes", "GatedGeluCodes")
    calls = [[node for node in graph.node if node.op_type.startswith(names)] for graph in graphs]
    assert calls[0]
    assert not calls[1]
    read = {name for node in graphs[0].node for name in node.input}
    assert all(name in read for call in calls[0] for name in call.output if name)
    assert any(not name for call in calls[0] for name in call.output)


@pytest.mark.parametrize(
    "config", [{"intermediate_size": 40, "vocab_size": 8192}, {"num_attention_heads": 4}, {"norm_bias": True}], ids=str
)
def test_sizes_without_kernels_go_without(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In FP32 and in INT8; what has kernels, has them."""
    export_onnx(save_checkpoint(tmp_path / "checkpoint", **config), tmp_path / "bundle")
    shutil.copy("examples/news_topics/checkpoint/tokenizer.json", tmp_path / "bundle")
    graphs = [tmp_path / "bundle/onnx/model_ort.onnx"]
    if "intermediate_size" in config:
        add_int8(tmp_path / "bundle", "model_int8.onnx")
        graphs.append(tmp_path / "bundle/onnx/model_int8.onnx")
        products = {
            node.name: node.op_type for node in onnx.load(graphs[0]).graph.node if node.name.startswith("layers.0/")
        }
        assert products["layers.0/mlp/Wi_gate"] == products["layers.0/mlp/Wo"] == "MatMul"
        assert products["layers.0/attn/Wq"] == "Product"
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(5, 50, (2, 150)), np.ones((2, 150), np.int64)
    mask[0, 100:] = 0
    for graph in graphs:
        monkeypatch.delenv(VARIABLE, raising=False)
        with_kernels = logits(graph, ids, mask)
        monkeypatch.setenv(VARIABLE, "off")
        without = logits(graph, ids, mask)
        assert np.abs(with_kernels - without).max() < 1e-3 * np.abs(without).max()


def test_what_is_chosen_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    assert str(kernels()) == "none: MBEXPORT_KERNELS is off"
    assert kernels().library is None
    monkeypatch.setenv(VARIABLE, "SSE")
    with pytest.raises(InputError, match="MBEXPORT_KERNELS is 'SSE', expected auto, AVX-512, AVX2 or off"):
        kernels()
    monkeypatch.setattr(module, "LIBRARY", Path("nowhere.so"))
    module._library.cache_clear()
    try:
        monkeypatch.setenv(VARIABLE, "AVX2")
        with pytest.raises(InputError, match="MBEXPORT_KERNELS is AVX2, and there is none: mbexport was built without"):
            kernels()
        monkeypatch.delenv(VARIABLE)
        assert "C compiler" in str(kernels())
    finally:
        module._library.cache_clear()


def test_a_damaged_library_is_passed_over_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernels.so").write_bytes(b"no library")
    monkeypatch.setattr(module, "LIBRARY", tmp_path / "kernels.so")
    monkeypatch.delenv(VARIABLE, raising=False)
    module._library.cache_clear()
    try:
        assert kernels().name is None
        assert "kernels.so cannot be loaded" in str(kernels())
    finally:
        module._library.cache_clear()
