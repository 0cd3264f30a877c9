"""What is fuzzed: each target gives bytes to a real entry, which must succeed or raise an MbexportError.

An input of a target with several files begins with a character that says which of them the rest replaces: ``0`` for
the first. The others stay valid.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from mbexport import export_onnx
from mbexport import manifest as manifests
from mbexport.bench.plan import shapes_to_run
from mbexport.checkpoint.load import load_checkpoint, read_bundle_spec
from mbexport.cli import main
from mbexport.engines.gpus import find_gpu
from mbexport.engines.shapes import chosen_profiles
from mbexport.errors import MbexportError
from mbexport.graph.sites import encoder_sites
from mbexport.precision.calibration import FIGURES, Calibration
from mbexport.precision.half import HalfWeights
from mbexport.precision.integer import quantized_sites
from mbexport.precision.strength import Choice
from mbexport.profiles import parse_profiles
from mbexport.quantize.samples import bundle_sampler, disjoint, split
from mbexport.runtime import Model, load
from mbexport.runtime.prepacked import prepack
from mbexport.runtime.text import TextEncoder
from mbexport.texts import read_examples
from tests.fuzz import base

ZERO = ord("0")
TEXTS = ("", "a", "ab ab. b", "[CLS] [MASK]", "a b " * 40, "é\U0001f600~\u0000 \u202e", "a" * 40 + "c", ("a b", "b"))


@dataclass(frozen=True)
class Target:
    """One entry.

    ``share``: of all inputs, what this target gets, so that slow ones do not take the day. ``seeds``: valid inputs.
    ``documents``: whether seeds are JSON (or safetensors, whose header is), which are mutated as such; ``parts``:
    values that mean something in them.
    """

    name: str
    share: float
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    documents: bool = True
    parts: tuple[Any, ...] = ()


class CommandFailedError(Exception):
    """A command ended in another way than a user is promised."""


def command(*arguments: str) -> None:
    """Run a command; a refusal must be one line and exit code 2."""
    result = CliRunner().invoke(main, list(arguments))
    if result.exit_code not in (0, 1, 2):
        raise CommandFailedError(f"exit code {result.exit_code}: {result.stderr[-300:]}")
    if result.exit_code == 2 and not (result.stderr.startswith("mbexport: error: ") and result.stderr.count("\n") == 1):
        raise CommandFailedError(f"not one line: {result.stderr[-300:]}")


def to_the_end(checkpoint: Path) -> None:
    """What an export reads of a checkpoint, all of it."""
    loaded = load_checkpoint(checkpoint)
    for _ in loaded.weights.read(loaded.weights.names()):
        pass


class Workplace:
    """Makes the targets, in a folder of their own.

    Args:
        folder: an empty one, on a fast disk.
    """

    def __init__(self, folder: Path) -> None:
        base.build(folder)
        self._checkpoints, self._bundles, self._out = folder / "checkpoints", folder / "bundles", folder / "out"
        self._texts = folder / "texts"
        self._texts.mkdir()
        self._classifier = self._bundles / "text-classification"
        prepack(self._classifier)
        self._calibration().save(folder / "calibration.npz")
        self._folder = folder

    def _calibration(self) -> Calibration:
        spec = read_bundle_spec(self._classifier, manifests.read(self._classifier))
        choice = Choice(*(0.5,) * (len(FIGURES)), np.ones(8, np.float32))  # type: ignore[arg-type]
        return Calibration("0" * 64, 3, {site.name: choice for site in encoder_sites(spec)})

    @cached_property
    def targets(self) -> dict[str, Target]:
        """All of them by name."""
        checkpoints, classifier, out = self._checkpoints, self._classifier, self._out
        plain, sentence, adapter = (checkpoints / name for name in ("text-classification", "sentence", "adapter"))
        sharded, pipeline, masked = checkpoints / "sharded", self._bundles / "sentence", self._bundles / "fill-mask"
        config, folders = plain / "config.json", ("1_Pooling", "2_Dense")
        settings = [sentence / name for name in ("config_sentence_transformers.json", "sentence_bert_config.json")]
        steps = [sentence / folder / "config.json" for folder in folders]
        tokenizer = classifier / "tokenizer.json"
        record = classifier / "prepacked" / "model_ort" / "prepacked.json"

        def export(checkpoint: Path) -> None:
            export_onnx(checkpoint, out, force=True)
            self._answer(out)

        made = [
            self._files("config", 12, lambda: to_the_end(plain), [
                config, plain / "tokenizer_config.json", plain / "special_tokens_map.json", plain / "tokenizer.json",
            ], self._newer_configs()),
            self._files("safetensors", 12, lambda: to_the_end(plain), [plain / "model.safetensors"]),
            self._files("index", 5, lambda: to_the_end(sharded), [
                sharded / "model.safetensors.index.json", sharded / "model-00001-of-00002.safetensors",
            ]),
            self._files("adapter", 8, lambda: to_the_end(adapter), [
                adapter / "adapter_config.json", adapter / "adapter_model.safetensors",
            ]),
            self._files("sentence", 8, lambda: to_the_end(sentence), [
                sentence / "modules.json", *steps, *settings, sentence / "2_Dense" / "model.safetensors",
            ]),
            self._files("export", 1, lambda: export(plain), [config, plain / "tokenizer_config.json"],
                        self._newer_configs()),
            self._files("export_sentence", 1, lambda: export(sentence), [*steps, *settings, sentence / "modules.json"]),
            self._files("manifest", 12, lambda: self._use(classifier), [classifier / "mbexport.json"]),
            self._files("manifest_of_sentence", 4, lambda: self._use(pipeline), [pipeline / "mbexport.json"]),
            self._files("manifest_of_masks", 4, lambda: self._use(masked), [masked / "mbexport.json"]),
            self._files("bundle_config", 4, lambda: command("inspect", str(classifier)), [classifier / "config.json"]),
            self._files("packed", 2, lambda: self._answer(classifier), [record]),
            self._files("tokenizer", 14, lambda: self._tokenize(tokenizer), [tokenizer], self._tokenizers(),
                        parts=base.TOKENIZER_PARTS),
            self._files("graph", 3, lambda: self._answer(classifier, rehash=True), [classifier / "onnx/model_ort.onnx"],
                        documents=False),
            self._files("calibration", 3, lambda: Calibration.load(self._folder / "calibration.npz"),
                        [self._folder / "calibration.npz"], documents=False),
            self._texts_target(),
            Target("predict", 10, self._predict, tuple(repr(item).encode() for item in PREDICTED), documents=False),
            Target("options", 6, self._options, OPTIONS, documents=False),
        ]  # fmt: skip
        return {target.name: target for target in made}

    def _files(
        self, name: str, share: float, call: Callable[[], object], files: list[Path], further: tuple[bytes, ...] = (),
        *, documents: bool = True, parts: tuple[Any, ...] = (),
    ) -> Target:  # fmt: skip
        """A target whose inputs replace one of some files."""
        originals = [path.read_bytes() for path in files]

        def run(data: bytes) -> None:
            number = (data[0] - ZERO) % len(files) if data else 0
            files[number].write_bytes(data[1:])
            try:
                call()
            finally:
                files[number].write_bytes(originals[number])

        seeds = tuple(bytes([ZERO + number]) + content for number, content in enumerate(originals))
        return Target(name, share, run, (*seeds, *further), documents, parts)

    def _newer_configs(self) -> tuple[bytes, ...]:
        newer = base.CONFIG | base.NEWER | {"architectures": [base.ARCHITECTURES["text-classification"]]}
        scaled = base.CONFIG | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.2}}
        return tuple(b"0" + json.dumps(config).encode() for config in (newer, scaled | newer))

    def _tokenizers(self) -> tuple[bytes, ...]:
        return tuple(b"0" + tokenizer.to_str().encode() for tokenizer in base.make_tokenizers().values())

    def _answer(self, bundle: Path, *, rehash: bool = False) -> None:
        """Load a bundle and answer, as a service does; ``rehash``: its maker wrote the manifest of what is there."""
        if rehash:
            path = bundle / "mbexport.json"
            manifest = manifests.read(bundle)
            graphs = tuple(
                dataclasses.replace(graph, sha256=hashlib.sha256((bundle / graph.file).read_bytes()).hexdigest())
                for graph in manifest.graphs
            )
            path.write_text(dataclasses.replace(manifest, graphs=graphs).to_json(), encoding="utf-8")
        self._ask(load(bundle, "cpu", threads=1, share_cores=False))

    def _ask(self, model: Model) -> None:
        task = model.manifest.task
        if task == "multiple-choice":
            model([("a", ["b", "c"])])
        elif task == "question-answering":
            model([("a", "b c")])
        else:
            model(["a [MASK] b", "ab"] if task != "fill-mask" else ["a [MASK] b"])
        if task == "feature-extraction":
            model.embed(["a"])

    def _use(self, bundle: Path) -> None:
        """All that reads a manifest."""
        command("inspect", str(bundle), "--json")
        command("inspect", str(bundle), "--verify")
        self._answer(bundle)

    def _tokenize(self, file: Path) -> None:
        for keep_first in (False, True):
            encoder = TextEncoder(file, 16, keep_first=keep_first)
            for text in TEXTS:
                with refused():
                    encoder.encode([text])
            encoder.token_id("[MASK]")
            for number in (0, 4, 10**6, 2**32 - 1):
                encoder.decode(number)

    def _texts_target(self) -> Target:
        """Files with texts, up to what calibration makes of them."""
        paths = [self._texts / f"texts{suffix}" for suffix in (".txt", ".jsonl", ".json", ".csv")]
        samplers = [
            bundle_sampler(bundle, manifests.read(bundle), 16)
            for bundle in (self._classifier, self._bundles / "fill-mask")
        ]

        def run(data: bytes) -> None:
            path = paths[(data[0] - ZERO) % len(paths)] if data else paths[0]
            path.write_bytes(data[1:])
            examples = read_examples(path)
            for sampler in samplers:
                with refused():
                    first, second = split(examples, None)
                    disjoint(sampler.samples(first), sampler.samples(second))

        items = [{"text": "a b", "label": "yes"}, {"text": "ab", "text_pair": "b", "label": 1}, "c c"]
        seeds = (
            b"0a b\nab\n\n c\r\na\n",
            b"1" + "\n".join(map(json.dumps, items)).encode(),
            b"2" + json.dumps(items).encode(),
            b'3text,label,text_pair\n"a, b",yes,b\n"a ""b""\n",no,\n',
        )
        return Target("texts", 12, run, seeds)

    @cached_property
    def _models(self) -> list[Model]:
        return [load(path, "cpu", threads=1, share_cores=False) for path in sorted(self._bundles.iterdir())]

    def _predict(self, data: bytes) -> None:
        """Python's literals to every model; what is none is a text."""
        text = data.decode("utf-8", "surrogatepass" if data.isascii() else "replace")
        try:
            texts = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            texts = [text]
        for model in self._models:
            with refused():
                model(texts)
            with refused():
                model.embed(texts, truncate_dim=2)
            with refused():
                model.logits(texts)

    def _options(self, data: bytes) -> None:
        """A character that says which option, then its value, as a command gets it."""
        value = os.fsdecode(data[1:]).replace("\0", "")
        bundle = self._classifier
        manifest = manifests.read(bundle)
        spec = read_bundle_spec(bundle, manifest)
        calls: tuple[Callable[[], object], ...] = (
            lambda: chosen_profiles([value], spec, 64, bundle),
            lambda: parse_profiles(value),
            lambda: find_gpu(value),
            lambda: quantized_sites(spec, (value,)),
            lambda: HalfWeights(lambda *_: None, spec, {}, "fp16", (value,)),
            lambda: shapes_to_run(value.split(","), 64, has_texts=False),
            lambda: command(
                "package", str(bundle), "-q", "-o", str(self._folder / "triton"), "--force", "--name", value
            ),
            lambda: command("package", str(bundle), "-q", "-o", str(self._folder / "triton"), "--engine", value),
            lambda: command("predict", str(bundle), "-q", value),
            lambda: command("inspect", value),
            lambda: command("predict", str(self._bundles / "sentence"), "--prompt", value, "a"),
        )
        calls[(data[0] - ZERO) % len(calls) if data else 0]()


@contextmanager
def refused() -> Iterator[None]:
    """A refusal is as good as a success, and the next call must work after it."""
    with suppress(MbexportError):
        yield


PREDICTED: tuple[Any, ...] = (
    ["a b", "ab", ""], [("a", "b c")], [("a", ["b", "c"])], ["a [MASK] b"], [["a", "b"]], [], [None], [b"a"], "a",
    {"a": 1}, [1, 2.5], ("a", "b"), [("a", "b", "c")], [("a", [])], [("a", [1])], [{"text": "a"}], ["\ud800"],
    ["\0", "\u202e", "\U0001f600"], [("a", ("b",))], [[]], [["a", ["b", ["c"]]]], {"a", "b"}, None, 5, ["a b " * 60],
)  # fmt: skip
OPTIONS = (
    b"01x1:2x8:4x64", b"11x1:2x8:4x64,1x1:1x1:1x1", b"2rtx4090", b"3layers.1.mlp", b"4layers.0.attn", b"51x8,2x16",
    b"6text", b"7engine", b"8a b", b"9/dev/null", b":query",
)  # fmt: skip
