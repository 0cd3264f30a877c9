"""Engines of one graph, one GPU after another: build, put into the bundle, report."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path

from mbexport import manifest as manifests
from mbexport.bundle.engine_graph import ensure_engine_graph
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.checkpoint.spec import ModelSpec
from mbexport.disk.temporary import beside
from mbexport.disk.writing import cannot_write, make_folder
from mbexport.engines.builders import Target
from mbexport.engines.gpus import check_fp32_products
from mbexport.engines.job import Built, Job
from mbexport.engines.prepare import AttentionNode, ParserInput, prepare
from mbexport.engines.process import Memory, NotFusedError, run
from mbexport.engines.products import Products, look, products_warning
from mbexport.engines.report import (
    AttentionReport,
    EarlierGraphWarning,
    EngineReport,
    ProfileReport,
    fusion_warning,
    gate_warning,
    scores_warning,
)
from mbexport.engines.shapes import chosen_profiles, default_profiles
from mbexport.engines.timings import TimingCache, timing_cache
from mbexport.errors import EngineError
from mbexport.files import Progress, put_in_place, to_json, write_atomically
from mbexport.manifest import Engine, Graph, Manifest
from mbexport.profiles import Profile, profiles_text


@dataclass(frozen=True)
class Options:
    """What is common to all engines of a call.

    Attributes:
        precision: ``fp16``, ``bf16``, ``fp32``, ``int8`` or ``fp8``.
        keep_fp32: parts of a half-precision graph whose products stay in FP32.
        profiles: texts of profiles; None for each GPU's default.
        workspace: MiB of scratch memory that a kernel may take; None for the builder's default.
        packed: a row holds several texts.
    """

    precision: str
    keep_fp32: tuple[str, ...] = ()
    profiles: Sequence[str] | None = None
    workspace: int | None = None
    packed: bool = False


def build_engines(
    bundle: Path, targets: Sequence[Target], options: Options, progress: Progress
) -> tuple[EngineReport, ...]:
    """Build an engine for each target; each stands in the bundle before the next is begun.

    Args:
        bundle: the bundle; gets the graph that engines are built from, too, where it has none.
        targets: GPUs and builders, checked.
        options: precision, shapes and memory.
        progress: called as the graph is written and the builders go on, over all of it.

    Raises:
        BundleError: the bundle is damaged, or cannot be written.
        InputError: a profile, or a part to keep in FP32, that cannot be.
        PrecisionError: FP16 cannot hold the model.
        EngineError: a builder failed; earlier engines of this call stand.
    """
    manifest = manifests.read(bundle)
    spec = read_bundle_spec(bundle, manifest)
    chosen = None
    if options.profiles is not None:
        chosen = chosen_profiles(options.profiles, spec, manifest.max_length, bundle, packed=options.packed)
    parts = len(targets) + 1
    _check_kept(targets, options.keep_fp32, spec)
    try:
        for folder in ("engines", "reports"):
            make_folder(bundle / folder)
        graph = ensure_engine_graph(
            bundle,
            options.precision,
            keep_fp32=options.keep_fp32,
            packed=options.packed,
            progress=_part(progress, 0, parts, "graph"),
        )
        reports = []
        with _warning_of_earlier(bundle, manifest):
            source = prepare(bundle / graph.file, spec.layer_is_global)
            for number, target in enumerate(targets, start=1):
                profiles = chosen or default_profiles(
                    target.gpu, spec, manifest.max_length, graph.precision, packed=graph.packed
                )
                # TensorRT-RTX times nothing.
                cache = timing_cache(target.gpu.name) if target.builder == "tensorrt" else TimingCache()
                build = _Build(target, graph, source, profiles, options.workspace, cache)
                reports.append(build.into(bundle, _part(progress, number, parts, target.gpu.name)))
                progress(number + 1, parts, "")
    except OSError as cause:
        raise cannot_write(bundle, cause) from cause
    return tuple(reports)


def _check_kept(targets: Sequence[Target], keep_fp32: Sequence[str], spec: ModelSpec) -> None:
    """Refuse products in FP32 where a target has none; the embeddings are one only where they make logits, too."""
    products = {"layers"}
    if spec.head is not None or spec.sentence is not None:
        products |= {"head", "embeddings"} if spec.head is not None and spec.head.tied else {"head"}
    for target in targets:
        parts = [part for part in keep_fp32 if part.split(".")[0] in products]
        check_fp32_products(target.gpu, target.builder, parts)


@contextmanager
def _warning_of_earlier(bundle: Path, before: Manifest) -> Iterator[None]:
    """Warn, once the block has ended in whatever way, of engines whose graph was there before and is no more."""
    try:
        yield
    finally:
        now = manifests.read(bundle)
        earlier = [engine for engine in now.engines if before.origin(engine) is not None and now.origin(engine) is None]
        if earlier:
            graphs = sorted({engine.graph for engine in earlier})
            warnings.warn(
                f"{', '.join(graphs)} changed, and {', '.join(engine.file for engine in earlier)} "
                f"{'is' if len(earlier) == 1 else 'are'} of an earlier form; build again what should be of this one",
                EarlierGraphWarning,
                stacklevel=5,
            )


def _part(progress: Progress, number: int, total: int, name: str) -> Progress:
    """Progress of the graph, or of one engine, as its part of all."""

    def show(done: int, of: int, what: str) -> None:
        progress(number * of + done, total * of, f"{name}: {what}")

    return show


@dataclass(frozen=True)
class _Made:
    """A build that succeeded; ``loose``: the kinds of attention that are not fused."""

    built: Built
    memory: Memory
    loose: frozenset[str]
    products: Products | None


@dataclass(frozen=True)
class _Build:
    """One engine to be: for whom, of what, for which shapes."""

    target: Target
    graph: Graph
    source: ParserInput
    profiles: tuple[Profile, ...]
    workspace: int | None
    timing_cache: TimingCache

    def into(self, bundle: Path, progress: Progress) -> EngineReport:
        """Build, replace an earlier engine of the same name, tell the manifest, write the report."""
        form = "-packed" if self.graph.packed else ""
        file = f"engines/{self.target.gpu.name}-{self.graph.precision}{form}.engine"
        with beside(bundle / file) as temporary:
            made = self._build(temporary, progress)
            engine = self._entry(file, made.built)

            def placing(current: Manifest) -> Manifest:
                put_in_place(temporary, bundle / file)
                return current.with_engine(engine)

            # First without it: readers that come while the file changes find no entry of it.
            manifests.update(bundle, lambda current: current.without_engine(file))
            manifests.update(bundle, placing)
        report = self._report(engine, made)
        write_atomically(bundle / engine.report_file, to_json(report.to_dict()) + "\n")
        return report

    def _build(self, file: Path, progress: Progress) -> _Made:
        """Build with as many kinds of attention fused as can be; also the kinds that are not.

        A fused kernel is there for all layers of a kind or for none. The builder does not say which
        one it missed, so the kinds are tried: none set loose, one, all.
        """
        kinds = list(dict.fromkeys(node.kind for node in self.source.attention))
        for loose in chain.from_iterable(combinations(kinds, count) for count in range(len(kinds) + 1)):
            nodes = tuple(node.name for node in self.source.attention if node.kind in loose)
            try:
                built, memory = run(self._job(file, nodes), self.source.model, progress)
            except NotFusedError:
                continue
            self._check_attention(built)
            return _Made(built, memory, frozenset(loose), look(file, self.source.products, len(self.profiles)))
        raise EngineError(
            f"{self.target.builder} builds the attention of {self.graph.file} neither fused nor otherwise"
        )

    def _check_attention(self, built: Built) -> None:
        """Each Attention node must have become an attention layer, else nothing is known of it."""
        lost = [node.name for node in self.source.attention if node.name not in built.attention]
        if lost:
            raise EngineError(
                f"{self.target.builder} {built.version} made no attention layer of {lost[0]} ({len(lost)} in all), "
                "so it cannot be seen whether it is fused; take TensorRT 10.14 or later"
            )

    def _job(self, file: Path, loose: tuple[str, ...]) -> Job:
        ahead, gpu = self.target.builder == "tensorrt-rtx", self.target.gpu
        return Job(
            builder=self.target.builder,
            target=gpu.compute_capability if ahead else None,
            graph=str(self.source.path),
            profiles=tuple(map(str, self.profiles)),
            decomposable=loose,
            workspace=None if self.workspace is None else self.workspace * 2**20,
            timing_cache=None if self.timing_cache.file is None else str(self.timing_cache.file),
            engine=str(file),
        )

    def _entry(self, file: str, built: Built) -> Engine:
        gpu = self.target.gpu
        return Engine(
            file, gpu.name, gpu.capability_text, self.graph.precision, self.target.builder, built.version,
            profiles_text(self.profiles), built.sha256, built.bytes,
            self.graph.file, self.graph.sha256, self.graph.packed or None,
        )  # fmt: skip

    def _report(self, engine: Engine, made: _Made) -> EngineReport:
        attention = tuple(_attention(node, made.loose) for node in self.source.attention)
        told = (
            gate_warning(self.graph),
            fusion_warning(attention, engine),
            products_warning(made.products, engine.file),
            scores_warning(self.graph),
            self.timing_cache.warning,
        )
        rows = zip(self.profiles, made.memory.activations, strict=True)
        return EngineReport(
            engine=engine,
            why=self.target.why,
            profiles=tuple(ProfileReport(str(profile), size) for profile, size in rows),
            attention=attention,
            products=made.products,
            layers=made.built.layers,
            weight_bytes=made.memory.weights,
            workspace=self.workspace,
            seconds=round(made.built.seconds, 2),
            peak_bytes=made.built.peak_bytes,
            warnings=tuple(filter(None, told)),
        )


def _attention(node: AttentionNode, loose: frozenset[str]) -> AttentionReport:
    return AttentionReport(node.layer, node.kind, node.kind not in loose)
