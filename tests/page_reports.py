"""Reports as validate, int8 and trt write them, for tests of pages: one that holds, one that fails, hostile texts."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mbexport.manifest import Check, Engine, Graph, Manifest, Source, write
from mbexport.page.quality import QualityFacts
from mbexport.parity.page import Facts, facts_of
from mbexport.parity.report import (
    Diagnosis,
    Disagreement,
    Fault,
    Figures,
    GraphParity,
    Histogram,
    InputFigures,
    OwnError,
    ParityReport,
    StageError,
)
from mbexport.parity.samples import LENGTHS, PADDINGS, TEXTS

LAYERS = 22
HALF_LIMITS = {"max_error": 0.24, "cosine": 0.9999, "agreement": 0.999}
HOSTILE = (
    "<script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\">",
    "\"quoted\" & 'quoted' </div></section></main>",
    "\u202egnp.exe tfel ot thgir \u2067unclosed",
    "مرحبا بالعالم، هذه جملة عربية طويلة نسبيا لاختبار الاتجاه",
    "\x00\x07\x1b[31mcontrol\x7f\x9b characters\ud800 \ufeff",
    "w" * 10_000,
    "Z\u0353\u0321\u0348a" + "\u0351\u0343\u0357" * 300 + "lgo",
    "javascript:alert(1) https://example.com/tracker.png //example.com",
    "",
    "a\nb\r\nc\td " * 200,
)


def _stages(rng: np.random.Generator, own: float, limit: float) -> list[StageError]:
    """Of a model with as many layers as ModernBERT base, every third with global attention."""
    kinds = [("embeddings", "embeddings")]
    for layer in range(LAYERS):
        attention = "global attention" if layer % 3 == 0 else "local attention"
        kinds += [(f"layers.{layer}.attn", attention), (f"layers.{layer}.mlp", "mlp")]
    kinds += [("final_norm", "norm"), ("pooling", "pooling"), ("head", "head")]
    made = own * np.exp(rng.normal(0, 0.5, len(kinds)))
    made[[0, -2]] = 0  # a lookup, and the choice of a token, are exact
    together = np.sqrt(np.cumsum(np.square(made)))
    return [StageError(name, kind, float(made[n]), float(together[n]), limit) for n, (name, kind) in enumerate(kinds)]


def _broken(stages: list[StageError], names: dict[str, float]) -> tuple[StageError, ...]:
    """Stages with larger errors of their own, which stay from there on."""
    carried, result = 0.0, []
    for stage in stages:
        own = names.get(stage.name, stage.own)
        carried = max(carried, own if stage.name in names else 0.0)
        result.append(dataclasses.replace(stage, own=own, accumulated=max(stage.accumulated, carried)))
    return tuple(result)


def _inputs(rng: np.random.Generator, error: float, *, window: float | None = None) -> tuple[InputFigures, ...]:
    lengths = [(int(rng.integers(3, 40)), "none" if n % 4 == 0 else "right", n) for n in range(len(TEXTS))]
    lengths += [(length, padding, None) for length in LENGTHS[:-2] for padding in PADDINGS]
    found = []
    for length, padding, text in lengths:
        value = error * float(np.exp(rng.normal(0, 0.4))) * (1 + length / 3000)
        if window is not None and length > 65:
            value = window * float(np.exp(rng.normal(0, 0.3))) * min(1.0, (length - 65) / 200 + 0.05)
        found.append(InputFigures(length, padding, 0.0 if length == 1 else value, text))
    return tuple(found)


def _histogram(rng: np.random.Generator, error: float) -> Histogram:
    edges = tuple(float(f"{10**exponent:.6g}") for exponent in np.arange(-10, 1.01, 0.25))
    values = np.abs(rng.normal(0, error / 3, 40_000)) * np.exp(rng.normal(0, 0.5, 40_000))
    counts = np.histogram(np.maximum(values, edges[0]), edges)[0]
    return Histogram(edges, tuple(map(int, counts)))


def _graph(file: str, precision: str, inputs: tuple[InputFigures, ...], **fields: Any) -> GraphParity:
    """The figures of a graph as they follow from its inputs."""
    spread = 11.93
    limits = fields.pop("limits", {"max_error": 2.4e-4})
    agreement = fields.pop("agreement", 1.0)

    def figures(chosen: list[InputFigures]) -> Figures:
        error = max(item.max_error for item in chosen)
        return Figures(len(chosen), error, error / spread, max(-1.0, 1 - (error / spread) ** 2), agreement)

    ends = (0, 65, 128, 256, 512, 1024, 2048, 4096)
    by_length = {
        f"{low + 1}-{high}": figures(some)
        for low, high in pairwise(ends)
        if (some := [item for item in inputs if low < item.length <= high])
    }
    by_padding = {p: figures(some) for p in PADDINGS if (some := [item for item in inputs if item.padding == p])}
    return GraphParity(
        file, precision, fields.pop("passed", True), limits, spread, figures(list(inputs)), by_length, by_padding,
        inputs=inputs, **fields,
    )  # fmt: skip


ENVIRONMENT = {
    "mbexport": "0.1.0",
    "python": "3.12.3",
    "torch": "2.13.0+cpu",
    "transformers": "5.23.0",
    "onnxruntime": "1.27.0",
    "system": "Linux 6.8.0 x86_64",
    "cpu": "AMD EPYC 9B14, 2 cores",
}


def holding() -> ParityReport:
    """A bundle whose three graphs all hold."""
    rng = np.random.default_rng(0)
    stages = tuple(_stages(rng, 1.5e-4, 4e-3))
    searched = Diagnosis("2 inputs of 512 tokens, unpadded and padded on the right", stages, (), "No stage is wrong.")
    half = _graph(
        "onnx/model_fp16.onnx", "fp16", _inputs(rng, 4e-3), limits=HALF_LIMITS, ratio=0.92,
        errors=_histogram(rng, 3e-3), diagnosis=searched,
        disagreements=(Disagreement(TEXTS[2], 27, "none", None, "business", "politics", 3.1e-4),), disagreeing=1,
    )  # fmt: skip
    full = [
        _graph(f"onnx/{name}.onnx", "fp32", _inputs(rng, 2e-6), errors=_histogram(rng, 1e-6))
        for name in ("model", "model_ort")
    ]
    return ParityReport(
        True, "sdpa (torch's CPU flash kernel), float32, torch 2.13.0+cpu, transformers 5.23.0",
        "18 texts", 4096, (*full, half),
        {"onnx/model_int8.onnx": "int8 is held to limits of its own by mbexport int8, whose figures are below"},
        subject="news-topics-modernbert", half=OwnError("sdpa, float16, CPU", 8.1e-3, 0.999998, 1.0),
        environment=ENVIRONMENT, notes=("no text was longer than 40 tokens",),
    )  # fmt: skip


def failing() -> ParityReport:
    """A graph with a window too narrow by one in a layer, another with an overflow; one holds."""
    rng = np.random.default_rng(1)
    narrow = _broken(_stages(rng, 6e-7, 2e-5), {"layers.7.attn": 3.2e-2})
    window = Fault(
        ("layers.7.attn",), "local attention", "attended", "window",
        "local attention reaches 63 tokens to either side, the model's reaches 64", 5.1e-7,
        "all tokens with a neighbour at a distance of exactly 64", "all channels of all heads alike",
    )  # fmt: skip
    hot = _broken(_stages(rng, 1.5e-4, 4e-3), {"layers.12.mlp": float("inf"), "layers.13.attn": 0.41})
    overflow = Fault(
        ("layers.12.mlp",), "mlp", "gated", "overflow", "values beyond 65,504 become infinite in FP16", None,
        "4 of 1,024 tokens: 0, 511, 512, 1023", "1 of 1,152 channels: 731",
    )  # fmt: skip
    cases = [Disagreement(TEXTS[3], 31, "none", None, "sport", "politics", 0.42)]
    cases += [
        Disagreement(text, 120 + n, PADDINGS[n % 4], None, "sport", "tech", 0.01 * n) for n, text in enumerate(TEXTS)
    ]
    cases += [Disagreement(None, 1024, "interleaved", None, "business", "sport", 1.3)]
    graphs = (
        _graph(
            "onnx/model.onnx", "fp32", _inputs(rng, 2e-6, window=0.08), passed=False, agreement=0.9615,
            errors=_histogram(rng, 3e-2), disagreements=tuple(cases), disagreeing=64,
            diagnosis=Diagnosis(
                "2 inputs of 512 tokens, unpadded and padded on the right", narrow, (window,),
                "layers.7.attn (local attention) is the first stage to go wrong: local attention reaches 63 tokens to "
                "either side, the model's reaches 64.",
            ),
        ),
        _graph("onnx/model_ort.onnx", "fp32", _inputs(rng, 2e-6), errors=_histogram(rng, 1e-6)),
        _graph(
            "onnx/model_fp16.onnx", "fp16", (*_inputs(rng, 4e-3), InputFigures(512, "none", float("inf"))),
            passed=False, limits=HALF_LIMITS, agreement=0.25, ratio=float("inf"), errors=_histogram(rng, 3e-3),
            diagnosis=Diagnosis(
                "1 input of 1,024 tokens", hot, (overflow,),
                "layers.12.mlp (mlp) is the first stage to go wrong: values beyond 65,504 become infinite in FP16.",
            ),
        ),
    )  # fmt: skip
    return dataclasses.replace(holding(), passed=False, graphs=graphs)


def hostile() -> ParityReport:
    """Texts, labels and names that would break a page, or run in it, if they could."""
    report = failing()
    cases = tuple(Disagreement(text, 12, "right", 3, f"<b>{text[:90]}", text[:90] + "</bdi>", 0.5) for text in HOSTILE)
    name = 'onnx/"><script>document.title="run"</script>' + "x" * 200 + ".onnx"
    graphs = tuple(dataclasses.replace(g, disagreements=cases, disagreeing=99) for g in report.graphs)
    graphs = (dataclasses.replace(graphs[0], file=name), *graphs[1:])
    return dataclasses.replace(
        report, graphs=graphs, subject=HOSTILE[0], skipped={name: HOSTILE[1], "b": HOSTILE[2]},
        environment={"cpu": HOSTILE[0], HOSTILE[1]: "x" * 3000, "odd": HOSTILE[4]}, texts=HOSTILE[2],
    )  # fmt: skip


def quality_report(*, passed: bool = True) -> dict[str, Any]:
    """As `mbexport int8` writes it."""
    rng = np.random.default_rng(2)
    sites = [f"layers.{n}.{part}" for n in range(LAYERS) for part in ("attn.in", "attn.out", "mlp.in", "mlp.gated")]
    errors = {site: float(0.004 * np.exp(rng.normal(0, 0.6))) for site in sites}
    graphs = []
    for number, file in enumerate(("model_int8", "model_int8_reduced", "model_int8_qdq")):
        fine = passed or number != 2
        quality = {
            "texts": 1000, "predictions": 1000, "agreement": 99.4 if fine else 97.1, "f1": 95.81, "f1_drop": 0.11,
            "error": 0.0312 if fine else 0.19, "largest_error": 0.21, "similarity": None,
        }  # fmt: skip
        faults = [] if fine else ["97.10 % of predictions agree, 99 % are asked for"]
        keep = ["layers.21.mlp.gated", "layers.20.mlp.gated"] if number == 0 else []
        graphs.append({"file": f"onnx/{file}.onnx", "passed": fine, "keep": keep, "quality": quality, "faults": faults})
    figures = {"strength": 0.5, "range": 3.1, "covered": 1.0, "by_row": False}
    return {
        "passed": passed, "graphs": graphs,
        "sites": [{"name": site, "error": error, "row_error": error / 2, **figures} for site, error in errors.items()],
        "ranking": [{"part": site, "error": error} for site, error in sorted(errors.items(), key=lambda e: -e[1])],
        "calibration_texts": 256, "held_out_texts": 1000, "max_length": 512,
        "limits": {"min_agreement": 99.0, "max_f1_drop": 0.5, "min_similarity": 0.99},
        "weight_bytes": 151_000_000, "fp32_bytes": 598_000_000,
        "notes": ["the texts have no labels, so macro-F1 was not measured"],
    }  # fmt: skip


def engine(gpu: str, precision: str, capability: str) -> Engine:
    profile = "1x1:1x128:1x512,1x1:32x128:64x512,1x513:8x2048:8x8192"
    return Engine(
        f"engines/{gpu}-{precision}.engine", gpu, capability, precision, "tensorrt-rtx", "1.7.0.31", profile,
        "a" * 64, 318_400_000, "onnx/engine_fp16.onnx", "b" * 64,
    )  # fmt: skip


def engine_report(built: Engine) -> dict[str, Any]:
    """As `mbexport trt` writes it."""
    profiles = zip(built.profile.split(","), (4_200_000, 310_000_000, None), strict=True)
    kinds = ["global" if layer % 3 == 0 else "local" for layer in range(LAYERS)]
    return {
        "engine": dataclasses.asdict(built), "why": "no GPU is needed for it",
        "profiles": [{"profile": profile, "activation_bytes": size} for profile, size in profiles],
        "attention": [{"layer": n, "kind": kind, "fused": n > 0} for n, kind in enumerate(kinds)],
        "products": {"precision": "int8", "asked": 88, "unseen": []} if built.precision == "int8" else None,
        "layers": 1893, "weight_bytes": 301_000_000, "workspace": None, "seconds": 21.4, "peak_bytes": 2_210_000_000,
        "warnings": ["engines/a100-fp16.engine: attention is not fused in the global layers 0"],
        "fused_attention": "21 of 22 layers",
    }  # fmt: skip


def bundle_with_reports(folder: Path, *, passed: bool = True) -> Path:
    """A folder with a manifest and reports as of int8 and trt; no graph lies there."""
    quality = quality_report(passed=passed)
    graphs = [Graph(item["file"], "int8", "onnxruntime", 21, "c" * 64, gate="passed") for item in quality["graphs"]]
    graphs.append(Graph("onnx/engine_fp16.onnx", "fp16", "tensorrt", 24, "b" * 64))
    checks = [Check(f"quality of {i['file']}", "FP32", i["quality"], i["passed"]) for i in quality["graphs"]]
    engines = (engine("a100", "fp16", "8.0"), engine("rtx4090", "int8", "8.9"))
    (folder / "reports").mkdir(parents=True)
    manifest = Manifest(Source("news", "d" * 64), "text-classification", 8192, graphs=tuple(graphs), engines=engines,
                        checks=tuple(checks))  # fmt: skip
    write(manifest, folder)
    (folder / "reports" / "quality-int8.json").write_text(json.dumps(quality))
    for built in engines:
        (folder / built.report_file).write_text(json.dumps(engine_report(built)))
    return folder


def facts(folder: Path, *, passed: bool = True) -> Facts:
    """All that can stand beside a report."""
    command = "mbexport validate mbexport-out --checkpoint examples/news_topics/checkpoint --report report"
    return dataclasses.replace(facts_of(bundle_with_reports(folder, passed=passed)), command=command)


def quality_facts() -> QualityFacts:
    return QualityFacts.read(quality_report())
