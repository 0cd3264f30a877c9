"""``mbexport.json``: the contract between exporter and runtime. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mbexport.errors import BundleError
from mbexport.files import read_json, sha256, to_json, write_atomically
from mbexport.manifest_fields import LARGEST_LENGTH, Reader, names_inside
from mbexport.options import QUANTIZED

FILE_NAME = "mbexport.json"
SCHEMA_VERSION = 1
TASKS = (
    "feature-extraction",
    "text-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "fill-mask",
)
POOLINGS = ("cls", "mean", "max", "mean_sqrt_len", "weighted_mean", "last")
ACTIVATIONS = ("softmax", "sigmoid", "none")


@dataclass(frozen=True)
class Source:
    """Where the weights came from: the checkpoint's name and the SHA-256 of its weights."""

    name: str
    sha256: str


@dataclass(frozen=True)
class WeightsFile:
    """An external-data file that graphs share."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Graph:
    """One ONNX file; ``dialect`` is ``portable``, ``onnxruntime`` or ``tensorrt``.

    ``selects_tokens``: a third input, ``positions``, names the tokens whose outputs are wanted;
    ``keep_fp32``: parts of a half-precision graph whose products are float32, sorted; ``unheld``:
    layers whose attention scores FP16 does not surely hold. ``activation_bits``: of an INT8 graph for
    CPUs, 8, or 7 where the CPU's sums of pairs of products would saturate; ``gate``: what the quality
    gate found, ``passed`` or ``failed``; None: not measured, or a precision that needs none.
    ``packed_of``: the graph of the same weights that this one is the packed form of: its rows hold several texts.
    """

    file: str
    precision: str
    dialect: str
    opset: int
    sha256: str
    selects_tokens: bool = False
    keep_fp32: tuple[str, ...] = ()
    unheld: tuple[str, ...] = ()
    activation_bits: int | None = None
    gate: str | None = None
    packed_of: str | None = None

    @property
    def fused(self) -> bool:
        """Whether it is written in ONNX Runtime's own dialect."""
        return self.dialect == "onnxruntime"

    @property
    def packed(self) -> bool:
        """Whether its rows hold several texts."""
        return self.packed_of is not None

    @property
    def needs_gate(self) -> bool:
        """Whether its precision costs quality, so that a gate must have measured how much."""
        return self.precision in QUANTIZED


@dataclass(frozen=True)
class Engine:
    """One TensorRT engine: the GPU it was built for, the builder, and the graph it was built from.

    ``profile``: its optimization profiles as ``mbexport.profiles`` writes them; ``compute_capability``
    as NVIDIA writes it, e.g. ``8.9``; ``builder`` is ``tensorrt-rtx`` or ``tensorrt``;
    ``graph_sha256`` is of the graph as it was then; ``packed``: a row holds several texts.
    """

    file: str
    gpu: str
    compute_capability: str
    precision: str
    builder: str
    builder_version: str
    profile: str
    sha256: str
    bytes: int
    graph: str
    graph_sha256: str
    packed: bool | None = None

    @property
    def report_file(self) -> str:
        """Where the report of its build lies, relative to the bundle."""
        return f"reports/engine-{PurePosixPath(self.file).stem}.json"


@dataclass(frozen=True)
class Check:
    """What was compared with which reference, its figures, and whether it passed."""

    what: str
    reference: str
    figures: dict[str, Any]
    passed: bool


@dataclass(frozen=True)
class Sentence:
    """A sentence-transformers pipeline: what its users set besides the text.

    ``normalized``: vectors have length 1, also after a cut to ``truncate_dim`` numbers.
    """

    normalized: bool
    prompts: dict[str, str]
    default_prompt: str | None = None
    truncate_dim: int | None = None


@dataclass(frozen=True)
class Manifest:
    """All that a runtime needs to know about a bundle besides its files.

    ``pooling`` is how one vector is made of a text's token vectors (``cls`` or ``mean``),
    ``activation`` what turns logits into scores (``softmax``, ``sigmoid`` or ``none``),
    ``mask_token`` the text that fill-mask fills, ``notes`` every guess that the export had to make.
    """

    source: Source
    task: str
    max_length: int
    labels: tuple[str, ...] | None = None
    problem_type: str | None = None
    activation: str = "none"
    pooling: str | None = None
    mask_token: str | None = None
    sentence: Sentence | None = None
    weights: tuple[WeightsFile, ...] = ()
    graphs: tuple[Graph, ...] = ()
    engines: tuple[Engine, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def pools_texts(self) -> bool:
        """Whether the outputs that answers are made of belong to whole texts."""
        if self.sentence is not None:
            return self.pooling is not None
        return self.task in ("text-classification", "multiple-choice")

    @property
    def answer_outputs(self) -> tuple[str, ...] | None:
        """The graph outputs that answers are made of; None for all there are."""
        if self.sentence is None:
            return None
        return ("token_embeddings",) if self.pooling is None else ("sentence_embedding",)

    @property
    def needed_outputs(self) -> tuple[str, ...]:
        """The graph outputs without which there is no answer."""
        if self.answer_outputs is not None:
            return self.answer_outputs
        if self.task == "question-answering":
            return ("start_logits", "end_logits")
        return ("last_hidden_state",) if self.task == "feature-extraction" else ("logits",)

    def origin(self, engine: Engine) -> Graph | None:
        """The graph that an engine was built from; None where it is gone, or another took its place."""
        same = (graph for graph in self.graphs if (graph.file, graph.sha256) == (engine.graph, engine.graph_sha256))
        return next(same, None)

    def to_json(self) -> str:
        """The manifest as indented JSON, a line break at its end."""
        return to_json(dataclasses.asdict(self)) + "\n"

    def with_check(self, check: Check) -> Manifest:
        """A copy in which ``check`` replaces an earlier one of the same name."""
        others = tuple(old for old in self.checks if old.what != check.what)
        return dataclasses.replace(self, checks=(*others, check))

    def without_graph(self, file: str) -> Manifest:
        """A copy without a graph, its packed form, its own weights file and what was checked of it."""
        gone = {file, *(graph.file for graph in self.graphs if graph.packed_of == file)}
        checked = {f"{what} of {name}" for name in gone for what in ("parity", "quality")}
        return dataclasses.replace(
            self,
            graphs=tuple(graph for graph in self.graphs if graph.file not in gone),
            weights=tuple(weights for weights in self.weights if weights.file != f"{file}_data"),
            checks=tuple(check for check in self.checks if check.what not in checked),
        )

    def with_graph(self, graph: Graph, *weights: WeightsFile) -> Manifest:
        """A copy in which ``graph``, with the weights files of its own, replaces an earlier one of the same file."""
        others = self.without_graph(graph.file)
        return dataclasses.replace(others, graphs=(*others.graphs, graph), weights=(*others.weights, *weights))

    def with_weights(self, weights: WeightsFile) -> Manifest:
        """A copy in which ``weights`` replaces an earlier entry of the same file."""
        others = tuple(old for old in self.weights if old.file != weights.file)
        return dataclasses.replace(self, weights=(*others, weights))

    def without_engine(self, file: str) -> Manifest:
        """A copy without the engine of that file."""
        return dataclasses.replace(self, engines=tuple(engine for engine in self.engines if engine.file != file))

    def with_engine(self, engine: Engine) -> Manifest:
        """A copy in which ``engine`` replaces an earlier one of the same file."""
        return dataclasses.replace(self, engines=(*self.without_engine(engine.file).engines, engine))


def write(manifest: Manifest, bundle: Path) -> None:
    """Write the manifest of ``bundle`` in one step."""
    write_atomically(bundle / FILE_NAME, manifest.to_json())


def update(bundle: Path, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Change the manifest as it is now, while no other command does: what others added stays.

    Args:
        bundle: the bundle.
        change: makes the new manifest of the one that is there; may put files in their places, too.

    Returns:
        The manifest that was written.

    Raises:
        BundleError: as :func:`read`.
        OSError: it cannot be written.
    """
    from mbexport.disk.locking import locked  # a runtime only reads

    with locked(bundle / f".{FILE_NAME}.lock"):
        manifest = change(read(bundle))
        write(manifest, bundle)
    return manifest


def read(bundle: Path) -> Manifest:
    """The manifest of ``bundle``, every field checked.

    Raises:
        BundleError: no bundle there, a manifest of another version, or a damaged one.
    """
    path = bundle / FILE_NAME
    if not path.is_file():
        raise BundleError(f"{bundle} is no bundle ({FILE_NAME} is missing); make one: mbexport onnx CHECKPOINT")
    raw = read_json(path, BundleError)
    version = raw.get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema_version {version!r}, this mbexport reads {SCHEMA_VERSION}; "
            "export the checkpoint again, or use the mbexport that wrote it"
        )
    reader = Reader(path, raw)
    manifest = Manifest(
        source=reader.one("source", Source),
        task=reader.choice("task", TASKS),
        max_length=reader.positive("max_length", LARGEST_LENGTH),
        labels=reader.labels(),
        problem_type=reader.optional_text("problem_type"),
        activation=reader.choice("activation", ACTIVATIONS),
        pooling=None if raw.get("pooling") is None else reader.choice("pooling", POOLINGS),
        mask_token=reader.optional_text("mask_token"),
        sentence=_sentence(reader),
        weights=reader.many("weights", WeightsFile),
        graphs=reader.many("graphs", Graph),
        engines=reader.many("engines", Engine),
        checks=reader.many("checks", Check),
        notes=reader.texts("notes"),
    )
    _check_names(path, manifest)
    return manifest


def _check_names(path: Path, manifest: Manifest) -> None:
    """Each file once, also where a system ignores cases, and none that is there for something else."""
    known: set[str] = set()
    files = [entry.file for part in (manifest.weights, manifest.graphs, manifest.engines) for entry in part]
    for file in files:
        name = file.casefold()
        if not names_inside(file):
            raise BundleError(f"{path} names the file {file!r:.80}, which lies outside the bundle or is no file's name")
        if name in known or name.endswith(".json"):
            what = "twice" if name in known else "as a graph, weights or an engine"
            raise BundleError(f"{path} names the file {file!r:.80} {what}; export again")
        known.add(name)


def _sentence(reader: Reader) -> Sentence | None:
    sentence = reader.optional("sentence", Sentence)
    if sentence is None:
        return None
    if reader.choice("task", TASKS) != "feature-extraction":
        raise reader.wrong("task", "'feature-extraction', as it has a field sentence")
    if sentence.default_prompt is not None and sentence.default_prompt not in sentence.prompts:
        raise reader.wrong("sentence", "a default_prompt that is one of its prompts")
    if sentence.truncate_dim is not None and sentence.truncate_dim < 1:
        raise reader.wrong("sentence", "a truncate_dim from 1")
    return sentence


def check_files(bundle: Path, manifest: Manifest) -> None:
    """Find files that are missing, changed or cut short before a runtime trips over them.

    Graphs, which are small, are held to their SHA-256, weights to their size; all of it ``inspect --verify`` checks.

    Raises:
        BundleError: names the file.
    """
    for graph in manifest.graphs:
        path = bundle / graph.file
        if not path.is_file():
            raise BundleError(f"{path} is missing; copy the whole bundle, or export again")
        digest = sha256(path)
        if digest != graph.sha256:
            raise BundleError(
                f"{path} has the SHA-256 {digest}, the manifest says {graph.sha256:.80}, so it was changed; copy the "
                "whole bundle, or export again"
            )
    for weights in manifest.weights:
        path = bundle / weights.file
        found = path.stat().st_size if path.is_file() else 0
        if found != weights.bytes:
            raise BundleError(
                f"{path} has {found} bytes, the manifest says {weights.bytes}; copy the whole bundle, or export again"
            )
