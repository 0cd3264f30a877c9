"""INT8 end to end: real articles on the trained example and its outlier-ridden twin, and every kind of task."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from mbexport import build_engine, export_onnx, quantize_int8
from mbexport import manifest as manifests
from mbexport.cli import main
from mbexport.errors import BundleError, InputError
from mbexport.files import no_progress
from mbexport.precision.calibration import Calibration
from mbexport.precision.strength import Choice, choose
from mbexport.quantize import run
from mbexport.quantize.quality import Limits, Quality, measure
from mbexport.quantize.report import QuantizationReport
from mbexport.runtime import QualityWarning, load
from mbexport.runtime.backends.ort import OnnxRuntimeBackend
from mbexport.runtime.text import TextEncoder
from mbexport.texts import Example
from tests.checkpoints import ENCODER, EXAMPLE, copy_example, edit_tensors, save_checkpoint
from tests.outliers import blow_up
from tests.parity.test_heads import VARIANTS

sys.path.insert(0, str(EXAMPLE.parent.parent.parent))
from examples.news_topics.train import articles

AGREEMENT, F1_DROP = 99.5, 0.3  # asked for: percent, points
BRIEF = 64  # tokens: less text, closer decisions
CPU, REDUCED, ENGINES = "onnx/model_int8.onnx", "onnx/model_int8_reduced.onnx", "onnx/model_int8_trt.onnx"


def texts_of_news(count: int, start: int) -> list[Example]:
    """Articles by turns of their topics."""
    texts, topics = articles()
    order = np.random.default_rng(0).permutation(len(texts))[start : start + count]
    return [Example(texts[number], topics[number]) for number in order]


CALIBRATION, HELD_OUT = texts_of_news(100, 0), texts_of_news(400, 100)


def quantized(checkpoint: Path, folder: Path) -> tuple[Path, QuantizationReport]:
    export_onnx(checkpoint, folder / "bundle")
    report = quantize_int8(folder / "bundle", calibration=CALIBRATION, held_out=HELD_OUT, max_length=BRIEF, fp8=True)
    return folder / "bundle", report


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantizationReport]:
    """The example's bundle with its INT8 graphs, not to be changed."""
    return quantized(EXAMPLE, tmp_path_factory.mktemp("int8"))


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantizationReport]:
    """The same of a checkpoint that is the same function, with single channels far out."""
    folder = tmp_path_factory.mktemp("twin")
    blow_up(copy_example(folder / "checkpoint"))
    return quantized(folder / "checkpoint", folder)


@pytest.fixture(params=["example", "twin"])
def made(request: pytest.FixtureRequest) -> tuple[Path, QuantizationReport]:
    bundle, report = request.getfixturevalue(request.param)
    return bundle, report


def test_accuracy_is_kept(made: tuple[Path, QuantizationReport]) -> None:
    bundle, report = made
    assert report.passed
    assert [graph.file for graph in report.graphs] == [CPU, REDUCED, ENGINES, "onnx/model_fp8.onnx"]
    for graph in report.graphs[:3]:
        assert graph.keep == ()
        assert graph.quality.texts == graph.quality.predictions == report.held_out_texts > 390
        assert graph.quality.agreement is not None
        assert graph.quality.agreement >= AGREEMENT
        assert graph.quality.f1_drop is not None
        assert graph.quality.f1_drop <= F1_DROP
        assert graph.quality.error < 0.02
    files = [CPU, REDUCED, ENGINES, f"{CPU}_data"]
    size = sum((bundle / file).stat().st_size for file in files)
    assert size <= 0.3 * (bundle / "onnx/model.onnx_data").stat().st_size


def test_the_twin_is_the_same_function(example: Any, twin: Any) -> None:
    texts = [str(example.text) for example in HELD_OUT[:10]]
    expected = load(example[0], precision="fp32").logits(texts)
    np.testing.assert_allclose(load(twin[0], precision="fp32").logits(texts), expected, atol=1e-5)


def test_plain_quantization_fails_on_the_twin(twin: tuple[Path, QuantizationReport], tmp_path: Path) -> None:
    """The negative control: what everybody tries first loses what ours keeps."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    bundle, _ = twin
    quantize_dynamic(bundle / "onnx/model.onnx", tmp_path / "plain.onnx", weight_type=QuantType.QInt8)
    encoder = TextEncoder(bundle / "tokenizer.json", BRIEF)
    ids = [item.ids for item in encoder.encode([example.text for example in HELD_OUT])]

    def answers(graph: Path) -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(graph)
        feeds = [{"input_ids": text[None], "attention_mask": np.ones_like(text[None])} for text in ids]
        return [session.run(["logits"], feed)[0] for feed in feeds]

    labels = [example.label for example in HELD_OUT]
    quality = measure(
        manifests.read(bundle), answers(bundle / "onnx/model.onnx"), answers(tmp_path / "plain.onnx"), labels
    )
    assert quality.agreement is not None
    assert quality.agreement < AGREEMENT
    assert quality.error > 0.1


def test_what_was_judged_is_what_was_written(example: tuple[Path, QuantizationReport]) -> None:
    bundle, report = example
    backends = [OnnxRuntimeBackend(bundle / file, as_written=True) for file in ("onnx/model_ort.onnx", CPU)]
    encoder = TextEncoder(bundle / "tokenizer.json", BRIEF)
    found: list[list[np.ndarray]] = [[], []]
    ids = {item.ids.tobytes(): item.ids for item in encoder.encode([example.text for example in HELD_OUT])}
    calibrated = {item.ids.tobytes() for item in encoder.encode([example.text for example in CALIBRATION])}
    texts = [text for key, text in ids.items() if key not in calibrated]
    for text in texts:
        for outputs, backend in zip(found, backends, strict=True):
            outputs.append(backend.run(text[None], np.ones_like(text[None]))["logits"])
    quality = measure(manifests.read(bundle), *found, [None] * len(texts))
    assert quality.error == pytest.approx(report.graphs[0].quality.error, rel=1e-3)
    assert quality.agreement == report.graphs[0].quality.agreement


def test_manifest_and_reports_tell(example: tuple[Path, QuantizationReport]) -> None:
    bundle, report = example
    manifest = manifests.read(bundle)
    graphs = {graph.file: graph for graph in manifest.graphs if graph.gate}
    assert {file: (g.precision, g.dialect, g.activation_bits, g.gate) for file, g in graphs.items()} == {
        CPU: ("int8", "onnxruntime", 8, "passed"),
        REDUCED: ("int8", "onnxruntime", 7, "passed"),
        ENGINES: ("int8", "tensorrt", None, "passed"),
        "onnx/model_fp8.onnx": ("fp8", "tensorrt", None, "passed"),
    }
    assert {f"{CPU}_data", "onnx/model_fp8.onnx_data"} < {weights.file for weights in manifest.weights}
    checks = {check.what: check for check in manifest.checks}
    for graph in report.graphs:
        check = checks[f"quality of {graph.file}"]
        assert check.passed
        assert check.figures["agreement"] == graph.quality.agreement
        assert check.figures["limits"] == dataclasses.asdict(report.limits)
    manifests.check_files(bundle, manifest)
    assert json.loads((bundle / "reports/quality-int8.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    page = (bundle / "reports/quality-int8.html").read_text()
    assert page.count('<tr><th scope="row"') >= len(report.graphs) + len(report.sites)
    assert ("What each part costs" in page) == bool(report.ranking)
    calibration = Calibration.load(bundle / "calibration.npz")
    assert (calibration.source, calibration.texts) == (manifest.source.sha256, len(CALIBRATION))


def test_the_runtime_takes_it_and_answers_do_not_depend_on_neighbours(example: Any) -> None:
    bundle, _ = example
    texts = [str(item.text)[:200] for item in HELD_OUT[:24]]
    model, exact = load(bundle), load(bundle, precision="fp32")
    assert model.description.startswith("model_int8")
    assert exact.description.startswith("model_ort.onnx")
    together, expected = model.logits(texts), exact.logits(texts)
    alone = np.concatenate([model.logits([text]) for text in texts])
    error = np.abs(together - expected).max() / expected.std()
    assert 1e-5 < error < 0.05
    assert np.abs(together - alone).max() <= 1e-4 * expected.std()


def cutting(rows: np.ndarray, largest: np.ndarray, matrices: Sequence[np.ndarray]) -> Choice:
    """``choose`` with ranges that cut nearly everything."""
    choice = choose(rows, largest, matrices)
    return dataclasses.replace(choice, range=choice.range / 100, by_row=False)


def options(**settings: Any) -> run.Options:
    return run.Options(max_length=BRIEF, **settings)


def test_a_graph_that_cannot_pass_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the gate: ranges that cut nearly everything."""
    monkeypatch.setattr(run, "choose", cutting)
    export_onnx(EXAMPLE, tmp_path / "bundle")
    report = run.quantize(tmp_path / "bundle", CALIBRATION[:20], HELD_OUT[:60], options(search=False), no_progress)
    assert not report.passed
    # Seven bits go with ranges for each token, which nothing cuts.
    assert [graph.passed for graph in report.graphs] == [False, True, False]
    assert all("of predictions agree" in graph.faults[0] for graph in (report.graphs[0], report.graphs[2]))
    manifest = manifests.read(tmp_path / "bundle")
    assert [graph.gate for graph in manifest.graphs if graph.precision == "int8"] == ["failed", "passed", "failed"]
    assert load(tmp_path / "bundle").description.startswith("model_int8_reduced")
    manifests.update(tmp_path / "bundle", lambda manifest: manifest.without_graph(REDUCED))
    assert load(tmp_path / "bundle").description.startswith("model_ort.onnx")
    with pytest.warns(QualityWarning, match="its quality gate failed"):
        assert load(tmp_path / "bundle", precision="int8").description.startswith("model_int8.onnx")


def test_what_hurts_is_found_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sites are broken; they, and no others, stay in higher precision, and the graphs pass."""
    bundle = tmp_path / "bundle"
    export_onnx(with_tokenizer(save_checkpoint(tmp_path / "checkpoint", ENCODER, vocab_size=5000)), bundle)
    calls: list[int] = []

    def chosen(rows: np.ndarray, largest: np.ndarray, matrices: Sequence[np.ndarray]) -> Choice:
        calls.append(len(calls))
        broken = calls[-1] in (3, 6)  # layers.0.mlp.gated, layers.1.mlp.in
        return (cutting if broken else choose)(rows, largest, matrices)

    monkeypatch.setattr(run, "choose", chosen)
    settings = options(limits=Limits(min_similarity=0.97))
    report = run.quantize(bundle, CALIBRATION[:20], HELD_OUT[:40], settings, no_progress)
    assert {item.part for item in report.ranking[:2]} == {"layers.0.mlp.gated", "layers.1.mlp.in"}
    assert len(report.ranking) == 1 + 4 * 4
    assert report.passed
    both = ("layers.0.mlp.gated", "layers.1.mlp.in")
    assert [graph.keep for graph in report.graphs] == [both, (), both]
    page = (bundle / "reports/quality-int8.html").read_text()
    assert page.count('<table class="bars">') >= 2
    assert all(f">{item.part}</th>" in page for item in report.ranking)
    assert load(bundle).description.startswith("model_int8")


def with_tokenizer(checkpoint: Path) -> Path:
    """The checkpoint with the example's tokenizer, of 5,000 pieces."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EXAMPLE / name, checkpoint)
    return checkpoint


def test_one_that_no_search_can_mend_says_so(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    export_onnx(with_tokenizer(save_checkpoint(tmp_path / "checkpoint", ENCODER, vocab_size=5000)), bundle)
    settings = options(limits=Limits(min_similarity=1 - 1e-9))
    report = run.quantize(bundle, CALIBRATION[:10], HELD_OUT[:5], settings, no_progress)
    assert not report.passed
    assert all("keeping half of the parts" in graph.faults[-1] for graph in report.graphs)
    assert all(graph.keep == () for graph in report.graphs)
    assert "judged by 5 texts only" in report.notes[0]


def test_what_engines_cannot_hold_leaves_the_cpu_its_graphs(tmp_path: Path) -> None:
    """Queries and keys beyond FP16, which attention for TensorRT is computed in."""
    bundle = tmp_path / "bundle"
    checkpoint = copy_example(tmp_path / "checkpoint")
    edit_tensors(
        checkpoint,
        lambda tensors: {
            name: tensor * (1e5 if name.endswith("layers.2.attn.Wqkv.weight") else 1)
            for name, tensor in tensors.items()
        },
    )
    export_onnx(checkpoint, bundle)
    report = run.quantize(bundle, CALIBRATION[:20], HELD_OUT[:20], options(search=False), no_progress)
    assert [graph.file for graph in report.graphs] == [CPU, REDUCED]
    assert f"{ENGINES} is not made: queries and keys of layers.2" in report.notes[0]


def test_engines_of_earlier_graphs_are_told_of(example: tuple[Path, QuantizationReport], tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example[0], tmp_path / "bundle"))
    build_engine(bundle, gpu="l4", precision="int8", profiles=["1x1:1x128:4x512"])
    report = run.quantize(bundle, CALIBRATION[:20], HELD_OUT[:100], options(keep=("layers.0",)), no_progress)
    assert report.notes == (
        "engines/l4-int8.engine of the bundle: built from earlier graphs; build again with mbexport trt",
    )


YARN = {"rope_type": "yarn", "rope_theta": 160000.0, "factor": 4.0, "original_max_position_embeddings": 512}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize("rope", ["default", "yarn"])
def test_rotary_tables_in_two_parts(rope: str, tmp_path: Path) -> None:
    """Positions far beyond the finer part: as long texts go, the error does not grow."""
    settings: dict[str, Any] = {"vocab_size": 5000}
    if rope == "yarn":
        settings["rope_parameters"] = {"full_attention": YARN, "sliding_attention": DEFAULT}
    bundle = tmp_path / "bundle"
    export_onnx(with_tokenizer(save_checkpoint(tmp_path / "checkpoint", ENCODER, **settings)), bundle)
    run.quantize(bundle, CALIBRATION[:10], HELD_OUT[:5], options(search=False), no_progress)
    exact, ours = (OnnxRuntimeBackend(bundle / file, as_written=True) for file in ("onnx/model_ort.onnx", CPU))
    rng = np.random.default_rng(0)

    def error(length: int) -> float:
        ids = rng.integers(5, 5000, (1, length))
        outputs = [backend.run(ids, np.ones_like(ids))["last_hidden_state"][0] for backend in (exact, ours)]
        return float(np.sqrt(np.mean(np.square(outputs[1] - outputs[0])[-64:])) / outputs[0].std())

    short = error(100)
    assert 0 < short < 0.3
    for length in (128, 129, 300, 1025, 2048):
        assert error(length) < 1.5 * short, length


TASKS: dict[str, dict[str, Any]] = {
    name: VARIANTS[name]
    for name in ("token classification", "question answering", "multiple choice, cls", "masked LM, tied",
                 "masked LM, untied", "masked LM, head bias")
} | {
    "bare encoder": {"architecture": ENCODER},
    "regression": {"num_labels": 1, "problem_type": "regression"},
    "several labels": {"num_labels": 4, "problem_type": "multi_label_classification"},
    "all biases": {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True},
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_judged(task: str, tmp_path: Path) -> None:
    """Random weights, so limits are wide; what is measured is what the task answers."""
    checkpoint = with_tokenizer(save_checkpoint(tmp_path / "checkpoint", **{"vocab_size": 5000, **TASKS[task]}))
    bundle = tmp_path / "bundle"
    export_onnx(checkpoint, bundle)
    texts = [example.text for example in HELD_OUT]
    paired = task in ("question answering", "multiple choice, cls")
    items = [("What happened?", text) if paired else text for text in texts]
    report = quantize_int8(bundle, calibration=items[:20], held_out=items[20:50], max_length=BRIEF)
    for graph in report.graphs:
        quality = graph.quality
        assert 0 < quality.error < 0.25, graph.file
        judged = quality.agreement is None
        assert judged == (task in ("bare encoder", "regression", "multiple choice, cls"))
        if judged:
            assert quality.similarity is not None
            assert quality.similarity > 0.9
        else:
            assert 75 <= quality.agreement <= 100
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QualityWarning)  # random weights may fail
        model = load(bundle, precision="int8")
    if task.startswith("masked"):
        assert model.description.startswith("model_int8_selected")
        graphs = [graph for graph in manifests.read(bundle).graphs if graph.precision == "int8" and graph.fused]
        assert len({(graph.activation_bits, graph.gate) for graph in graphs}) == 2  # as its other graph was judged
        exact = load(bundle, precision="fp32")
        text = "The minister [MASK] the new tax."
        best, wanted = ({token["token"] for token in m([text])[0][0]} for m in (model, exact))
        assert len(best & wanted) >= 3
        assert ("untied" in task) or report.weight_share < 0.3  # an untied decoder stays as it is


def test_the_command(tmp_path: Path) -> None:
    export_onnx(EXAMPLE, tmp_path / "bundle")
    for name, examples in (("calibration", CALIBRATION[:30]), ("held_out", HELD_OUT[:40])):
        lines = (json.dumps({"text": item.text, "label": item.label}) for item in examples)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    command = ["int8", str(tmp_path / "bundle"), "--calibration", str(tmp_path / "calibration.jsonl"),
               "--max-length", "32"]  # fmt: skip
    result = CliRunner().invoke(main, [*command, "--held-out", str(tmp_path / "held_out.jsonl")])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("PASSED: 3 INT8 graphs against FP32, on 40 held-out texts\ncalibrated on 30 other")
    assert "onnx/model_int8_reduced.onnx" in result.stdout
    strict = [*command, "--min-agreement", "100", "--keep", "layers.0.mlp", "--keep", "embeddings", "--json"]
    report = json.loads(CliRunner().invoke(main, strict).stdout)
    assert (report["calibration_texts"], report["held_out_texts"]) == (15, 15)
    assert {tuple(graph["keep"]) for graph in report["graphs"]} == {("embeddings", "layers.0.mlp")}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [({"keep": ["layers.9"]}, InputError, "layers.9"), ({"keep": ["layers"]}, InputError, "no part"),
     ({"keep": ["embeddings", *(f"layers.{n}" for n in range(6))]}, InputError, "nothing is left"),
     ({"calibration": ["one", None]}, InputError, "item 1 is None"),
     ({"calibration": ["one", Example("two", 1)]}, InputError, "item 1"),
     ({"max_length": 0}, InputError, "max_length"),
     ({"calibration": ["one"]}, InputError, "expected 2 or more"), ({"calibration": []}, InputError, "0 text")],
)  # fmt: skip
def test_bad_input(settings: dict[str, Any], error: type[Exception], message: str, example_bundle: Path) -> None:
    with pytest.raises(error, match=message):
        quantize_int8(example_bundle, **({"calibration": ["one", "two"]} | settings))
    assert not (example_bundle / "reports").exists()


def test_engines_of_judged_graphs(example: tuple[Path, QuantizationReport], tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(example[0], tmp_path / "bundle"))
    reports = build_engine(bundle, gpu=["t4", "a100", "rtx4090"], precision="int8", profiles=["1x1:1x128:4x512"])
    reports += build_engine(bundle, gpu="rtx4090", precision="fp8", profiles=["1x1:1x128:4x512"])
    for report in reports:
        assert report.products is not None
        assert report.products.unseen == ()
        assert report.warnings == ()
        kept = next(graph.keep for graph in example[1].graphs if graph.file == report.engine.graph)
        assert report.products.asked == 7 * 6 if not kept else 0 < report.products.asked < 7 * 6


def test_fp8_of_the_same_calibration(tmp_path: Path) -> None:
    """Without --fp8, the graph is made when an engine of it is asked for; nothing has judged it."""
    bundle = tmp_path / "bundle"
    export_onnx(EXAMPLE, bundle)
    quantize_int8(bundle, calibration=CALIBRATION[:20], held_out=HELD_OUT[:20], max_length=BRIEF)
    assert not (bundle / "onnx/model_fp8.onnx").exists()
    (report,) = build_engine(bundle, gpu="l4", precision="fp8", profiles=["1x1:1x128:4x512"])
    assert ["was not put through" in warning for warning in report.warnings] == [True]
    assert report.engine.precision == "fp8"
    (graph,) = (graph for graph in manifests.read(bundle).graphs if graph.precision == "fp8")
    assert graph.gate is None
    manifest = dataclasses.replace(
        manifests.read(bundle).without_graph(graph.file), source=manifests.Source("other", "0" * 64)
    )
    manifests.write(manifest, bundle)
    with pytest.raises(BundleError, match="of other weights"):
        build_engine(bundle, gpu="l4", precision="fp8")


def test_a_damaged_calibration_is_refused(example: tuple[Path, QuantizationReport], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is missing"):
        Calibration.load(tmp_path / "calibration.npz")
    content = (example[0] / "calibration.npz").read_bytes()
    (tmp_path / "calibration.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match="is damaged"):
        Calibration.load(tmp_path / "calibration.npz")


def test_quality_knows_worse_from_better(example: tuple[Path, QuantizationReport]) -> None:
    """Seven bits cost more than eight."""
    eight, seven = (graph.quality for graph in example[1].graphs[:2])
    assert isinstance(eight, Quality)
    assert seven.error > eight.error
