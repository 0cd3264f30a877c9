"""What INT8 is judged on: trained checkpoints, each with texts of its own to calibrate on and others to judge by."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from examples.news_topics.train import articles
from mbexport import export_onnx
from mbexport import manifest as manifests
from mbexport.manifest import Manifest
from mbexport.options import INT8_MAX_LENGTH
from mbexport.quantize.samples import Sample, bundle_sampler, split
from mbexport.texts import Example, read_examples
from tests.outliers import blow_up

NEWS, SNIPPETS = Path("examples/news_topics/checkpoint"), Path("build/snippets")
SEED = 1  # of the news checkpoint's training, which decides what it has not seen
Texts = tuple[list[Example], list[Example]]  # to calibrate on, to judge by
FloatArray = npt.NDArray[np.float32]


class MissingError(Exception):
    """Something that this benchmark is given, and does not make itself, is not there."""


@dataclass(frozen=True)
class TextSet:
    """A checkpoint and its texts.

    Attributes:
        name: how tables name it.
        checkpoint: trained.
        texts: reads them; those to judge by, training has not seen.
        max_length: tokens that texts are cut to.
    """

    name: str
    checkpoint: Path
    texts: Callable[[], Texts]
    max_length: int = INT8_MAX_LENGTH


def news() -> Texts:
    """Articles, divided as the example's training divided them."""
    texts, topics = articles()
    order = list(range(len(texts)))
    random.Random(SEED).shuffle(order)  # noqa: S311
    examples = [Example(text, topic) for text, topic in zip(texts, topics, strict=True)]
    held_out = set(order[: len(order) // 5])
    training = [example for number, example in enumerate(examples) if number not in held_out]
    return training, [examples[number] for number in sorted(held_out)]


def snippets(name: str) -> Texts:
    """What benchmarks/snippets.py wrote beside a checkpoint.

    Raises:
        MissingError: it did not.
    """
    folder = SNIPPETS / name
    if not (folder / "held_out.jsonl").exists():
        raise MissingError(f"{folder} is missing; train it: python benchmarks/snippets.py {SNIPPETS} --task {name}")
    return read_examples(folder / "calibration.jsonl"), read_examples(folder / "held_out.jsonl")


SETS = {
    "news": TextSet("BBC News", NEWS, news),
    "news-32": TextSet("BBC News, first 32 tokens", NEWS, news, max_length=32),
    "movies": TextSet("film reviews", SNIPPETS / "movies", lambda: snippets("movies")),
    "sources": TextSet("sources", SNIPPETS / "sources", lambda: snippets("sources")),
}


@dataclass(frozen=True)
class Prepared:
    """A bundle of a checkpoint or of its outlier-ridden twin, and the very texts that ``mbexport int8`` chooses."""

    bundle: Path
    manifest: Manifest
    calibration: list[Example]
    held_out: list[Example]
    samples: tuple[Sample, ...]  # of the calibration
    judging: tuple[Sample, ...]


def prepare(given: TextSet, work: Path, *, twin: bool) -> Prepared:
    """Export to ``work / "bundle"``.

    Args:
        given: the checkpoint and its texts.
        work: an empty folder, or one that does not exist.
        twin: take the same function with single channels far out.

    Raises:
        MissingError: the checkpoint is not there.
    """
    calibration, held_out = split(*given.texts())
    checkpoint, bundle = given.checkpoint, work / "bundle"
    work.mkdir(parents=True)
    if twin:
        checkpoint = Path(shutil.copytree(given.checkpoint, work / "checkpoint"))
        blow_up(checkpoint)
    export_onnx(checkpoint, bundle)
    manifest = manifests.read(bundle)
    sampler = bundle_sampler(bundle, manifest, given.max_length)
    return Prepared(bundle, manifest, calibration, held_out, sampler.samples(calibration), sampler.samples(held_out))
