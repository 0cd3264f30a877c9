"""Results as text for people and as JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbexport.cli.console import facts, printable, table
from mbexport.manifest import Engine, Graph, Manifest
from mbexport.options import LARGEST_ERROR
from mbexport.profiles import parse_profile, parse_profiles, profile_text

if TYPE_CHECKING:
    from mbexport.bench.report import Report, Row, WorkloadFigures
    from mbexport.checkpoint.spec import ModelSpec
    from mbexport.engines.report import EngineReport
    from mbexport.packaging.run import PackageReport
    from mbexport.quantize.report import GraphReport, QuantizationReport

# The field of a JSON line that holds an answer which is no object itself.
ANSWER_FIELD = {"token-classification": "entities", "fill-mask": "masks", "feature-extraction": "embedding"}


def answer_json(text: Any, answer: Any, task: str) -> str:
    """One JSON line: the text (a pair as a list) and the answer."""
    if task == "feature-extraction":
        answer = answer.tolist()
    fields = answer if isinstance(answer, dict) else {ANSWER_FIELD[task]: answer}
    return json.dumps({"text": text, **fields}, ensure_ascii=False)


def answer_text(text: Any, answer: Any, task: str) -> str:
    """One line: the answer, a tab, the text (of a pair, its second)."""
    words = " ".join(str(text if isinstance(text, str) else text[1]).split())
    return f"{printable(_shown(answer, task))}\t{printable(words)}"


def _shown(answer: Any, task: str) -> str:
    if task == "feature-extraction":
        first = answer.reshape(-1)[:4]
        return f"[{' '.join(f'{value:.4f}' for value in first)} ...] {'x'.join(map(str, answer.shape))} numbers"
    if task == "token-classification":
        found = [f"{e['score']:.4f} {e['entity_group']} {e['word']!r} [{e['start']}:{e['end']}]" for e in answer]
        return "  ".join(found) or "-"
    if task == "fill-mask":
        masks = [", ".join(f"{t['score']:.4f} {t['token_str'].strip()}" for t in mask) for mask in answer]
        return "  |  ".join(masks)
    if task == "question-answering":
        return f"{answer['score']:.4f} {answer['answer']!r} [{answer['start']}:{answer['end']}]"
    if isinstance(answer.get("scores"), dict):
        return "  ".join(f"{score:.4f} {label}" for label, score in answer["scores"].items())
    return f"{answer['score']:.4f} {answer['label']}"


def package_text(report: PackageReport, output: Path) -> str:
    """The two models of a repository, and what starts a server with it."""
    rows = [
        ("repository", f"{output}: {report.bytes / 1e6:.1f} MB, {report.task}"),
        ("texts", f"{report.name}: Python backend, calls {report.graph_model}"),
        ("tokens", f"{report.graph_model}: {report.file}, {report.precision}, {report.backend}, {report.device}"),
        ("start", f"tritonserver --model-repository={output}  (see {output / 'README.md'})"),
    ]
    return facts(rows)


def quality_text(report: QuantizationReport) -> str:
    """Verdict first, then a row for each graph, then what was wrong."""
    failed = [graph for graph in report.graphs if not graph.passed]
    verdict = "FAILED" if failed else "PASSED"
    kept = [graph for graph in report.graphs if graph.keep]
    lines = [
        f"{verdict}: {len(report.graphs)} INT8 graphs against FP32, on {report.held_out_texts} held-out texts",
        f"calibrated on {report.calibration_texts} other texts, all cut to {report.max_length} tokens",
        f"weights: {report.weight_bytes / 1e6:.1f} MB, {report.weight_share:.1%} of FP32's",
        "",
        table(
            [("", "gate", "agreement", "macro-F1", "lost", "similarity", "error"), *map(_quality_row, report.graphs)]
        ),
    ]
    lines += [f"\n{graph.file}: {'; '.join(graph.faults)}" for graph in failed]
    if failed:
        lines.append("\nfailed graphs are in the bundle, and taken only where their precision is asked for by name")
    lines += [f"\n{graph.file} keeps in higher precision: {', '.join(graph.keep)}" for graph in kept]
    return "\n".join(lines)


def _quality_row(graph: GraphReport) -> tuple[str, ...]:
    quality = graph.quality
    return (
        graph.file,
        "passed" if graph.passed else "FAILED",
        "-" if quality.agreement is None else f"{quality.agreement:.2f} %",
        "-" if quality.f1 is None else f"{quality.f1:.2f}",
        "-" if quality.f1_drop is None else f"{quality.f1_drop:.2f}",
        "-" if quality.similarity is None else f"{quality.similarity:.5f}",
        f"{quality.error:.4f}",
    )


def manifest_text(manifest: Manifest, spec: ModelSpec, kernels: str) -> str:
    """What a bundle holds, a fact a line.

    Args:
        manifest: the bundle's manifest.
        spec: the model that its config.json describes.
        kernels: what computes it on this machine's CPU besides ONNX Runtime.
    """
    rows = [("source", manifest.source.name), ("task", manifest.task), *_answer_facts(manifest), *_model_facts(spec)]
    rows.append(("max_length", f"{manifest.max_length} tokens"))
    rows += [("graph", f"{g.file}: {_precision(g)}, {g.dialect}, opset {g.opset}") for g in manifest.graphs]
    rows += [("weights", f"{w.file}: {w.bytes / 1e6:.1f} MB") for w in manifest.weights]
    for engine in manifest.engines:
        rows += _engine_facts(engine, current=manifest.origin(engine) is not None)
    rows += [("check", f"{c.what}: {'passed' if c.passed else 'FAILED'} ({c.reference})") for c in manifest.checks]
    rows += [("note", message) for message in manifest.notes]
    rows.append(("kernels here", kernels))
    return facts(rows)


def _precision(graph: Graph) -> str:
    """E.g. ``fp16, embeddings and layers.0 in fp32``, or ``int8, gate passed, 7-bit activations``."""
    parts = [graph.precision, *(["packed rows"] if graph.packed else [])]
    if graph.keep_fp32:
        *others, last = graph.keep_fp32
        parts.append(f"{', '.join(others)} and {last} in fp32" if others else f"{last} in fp32")
    if graph.gate is not None:
        parts.append("gate passed" if graph.gate == "passed" else "gate FAILED")
    elif graph.needs_gate:
        parts.append("quality not measured")
    if graph.activation_bits is not None:
        parts.append(f"{graph.activation_bits}-bit activations")
    return ", ".join(parts)


def _engine_facts(engine: Engine, *, current: bool) -> list[tuple[str, str]]:
    """The engine, and a row for each of its profiles; ``current``: it was built from the graph that is there."""
    target = f"{engine.gpu} (compute capability {engine.compute_capability})"
    built = f"{engine.precision}, {engine.builder} {engine.builder_version}, {engine.bytes / 1e6:.1f} MB"
    origin = engine.graph if current else f"an earlier {engine.graph}"
    return [
        ("engine", f"{engine.file}: {target}, {built}, of {origin}"),
        *(("profile", f"  {profile_text(profile)}") for profile in parse_profiles(engine.profile)),
    ]


def engine_text(report: EngineReport) -> str:
    """What was built, a fact a line."""
    engine = report.engine
    rows = [
        ("engine", f"{engine.file}: {engine.bytes / 1e6:.1f} MB, {engine.precision}, of {engine.graph}"),
        ("gpu", f"{engine.gpu} (compute capability {engine.compute_capability})"),
        ("builder", f"{engine.builder} {engine.builder_version}: {report.why}"),
    ]
    rows += [
        ("profile", f"{profile_text(parse_profile(row.profile))}; activations {_megabytes(row.activation_bytes)}")
        for row in report.profiles
    ]
    loose = f"; several kernels in {report.loose_text}" if report.loose_text else ""
    rows.append(("fused attention", report.fused_text + loose))
    if report.products is not None:
        rows.append((f"{report.products.precision} products", str(report.products)))
    rows.append(
        ("build", f"{report.layers} layers in {report.seconds:.1f} s, peak memory {_megabytes(report.peak_bytes)}")
    )
    return facts(rows)


def _megabytes(size: int | None) -> str:
    return "not known" if size is None else f"{size / 1e6:.1f} MB"


def _answer_facts(manifest: Manifest) -> list[tuple[str, str]]:
    """How outputs become answers; what a task does not have is left out."""
    rows = []
    if manifest.labels:
        rows.append(("labels", ", ".join(manifest.labels)))
    if manifest.task == "text-classification":
        rows.append(("scores", f"{manifest.activation} ({manifest.problem_type or 'no problem_type stated'})"))
    if manifest.pooling:
        rows.append(("pooling", manifest.pooling))
    if manifest.sentence:
        rows.append(("vectors", "normalized" if manifest.sentence.normalized else "not normalized"))
        rows.append(("prompts", ", ".join(manifest.sentence.prompts) or "none"))
    return rows


def _model_facts(spec: ModelSpec) -> list[tuple[str, str]]:
    """Size and attention at a glance: G is a global layer, l a local one."""
    layers = "".join("G" if is_global else "l" for is_global in spec.layer_is_global)
    rows = [
        (
            "model",
            f"{spec.num_layers} layers, hidden size {spec.hidden_size}, {spec.num_heads} heads of {spec.head_dim}",
        ),
        ("layers", f"{layers} (G global, l local to {spec.half_window} tokens on either side)"),
    ]
    kinds = ((spec.has_global, "global", spec.global_rope), (spec.has_local, "local", spec.local_rope))
    ropes = [f"{name} {rope.kind}, theta {rope.theta:g}" for used, name, rope in kinds if used]
    return [*rows, ("rope", "; ".join(ropes))]


def bench_text(report: Report) -> str:
    """Machine, a table per workload, starts; a row per contender."""
    machine = report.machine
    rate = "not measured" if report.rate is None else f"{2e-9 * report.rate:.1f} GFLOP/s in matrix products"
    lines = [
        f"model: {report.model}",
        f"machine: {machine.cpu}, {machine.threads} of {machine.cores} cores, {rate}",
    ]
    for figures in report.workloads:
        texts = f"{figures.texts} text{'s' if figures.texts > 1 else ''}, {figures.tokens} tokens"
        floor = "" if figures.floor is None else f", arithmetic floor {1000 * figures.floor:.2f} ms"
        lines += ["", f"{figures.name}: {texts}{floor}", _bench_table(figures), *_bench_reasons(figures)]
    if report.starts:
        rows = [
            (start.contender, _cell(start.total, "{:.2f}"), _cell(start.load, "{:.2f}"), start.reason or "")
            for start in report.starts
        ]
        lines += ["", "until the first answer", table([("", "s", "of which loading", ""), *rows])]
    return "\n".join(lines)


def _bench_table(figures: WorkloadFigures) -> str:
    header = ("", "ms", "spread", "tokens/s", "of the floor", "ratio", "peak MB", "")
    return table([header, *(_bench_row(row) for row in figures.rows)])


def _bench_row(row: Row) -> tuple[str, ...]:
    return (
        row.contender,
        _cell(row.median, "{:.2f}", 1000),
        _cell(row.spread, "{:.2f}", 1000),
        _cell(row.tokens_per_second, "{:.0f}"),
        _cell(row.floor_share, "{:.0f} %", 100),
        _cell(row.ratio, "{:.2f}"),
        _cell(row.peak_bytes, "{:.0f}", 1e-6),
        _bench_verdict(row),
    )


def _bench_verdict(row: Row) -> str:
    """Empty where nothing needs to be said; of answers that need not be close, how far off they are."""
    if row.state != "measured":
        return row.state
    if not row.counts:
        return "WRONG"
    share = None if row.agreement is None else row.agreement.share
    return f"off by {100 * share:.2g} %" if share is not None and share > LARGEST_ERROR else ""


def _bench_reasons(figures: WorkloadFigures) -> list[str]:
    """Why figures are missing, or not to be trusted."""
    lines = [f"{row.contender}: {row.reason}" for row in figures.rows if row.reason]
    for row in figures.rows:
        if row.agreement and row.agreement.reason:
            lines.append(f"{row.contender}: {row.agreement.reason}")
        elif row.agreement and row.agreement.wrong:
            found, limit = row.agreement.difference, row.agreement.limit
            lines.append(f"{row.contender}: its answers differ by {found:.1e}, allowed are {limit:.1e}")
    return lines


def _cell(value: float | None, form: str, factor: float = 1) -> str:
    return "-" if value is None else form.format(factor * value)
