"""Texts for calibration and for the quality gate: disjoint, tokenized, cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mbexport.errors import InputError
from mbexport.manifest import Manifest
from mbexport.options import CALIBRATION_TEXTS, HELD_OUT_TEXTS
from mbexport.quantize.quality import Quality
from mbexport.runtime.text import Encoded, TextEncoder, bundle_encoder, with_prompt
from mbexport.texts import Example

IntArray = npt.NDArray[np.int64]
MASKED, MOST_MASKED = 0.15, 4  # of a text's tokens, those that a masked language model is asked for: share, number
MOST_FILLED = 200  # texts that one is judged by: each answer is as long as the vocabulary
FEW = 100  # predictions, below which a limit in percent says little
MOST_TOKENS = 64  # of a text, whose outputs are compared
LEAST_TEXTS = 2


@dataclass(frozen=True)
class Sample:
    """One text: ids [tokens], its label, and the tokens whose outputs count (None: outputs of the whole text)."""

    ids: IntArray
    label: str | None
    places: IntArray | None


@dataclass(frozen=True)
class Samples:
    """Texts to calibrate on, and texts to judge by; none is in both."""

    calibration: tuple[Sample, ...]
    held_out: tuple[Sample, ...]


def split(calibration: Sequence[Example], held_out: Sequence[Example] | None) -> tuple[list[Example], list[Example]]:
    """Which texts calibrate, and which judge.

    Without texts of their own to judge by, half of the calibration's are
    held out, in an order that is always the same.

    Raises:
        InputError: too few texts, or none left to judge by.
    """
    given = [example for example in calibration if example.text]
    if held_out is None:
        given = [given[number] for number in np.random.default_rng(0).permutation(len(given))]
        if len(given) < LEAST_TEXTS:
            raise InputError(f"there is {len(given)} text, expected {LEAST_TEXTS} or more; a few hundred are enough")
        count = min(len(given) // 2, CALIBRATION_TEXTS)
        return given[:count], given[count : count + HELD_OUT_TEXTS]
    if not given:
        raise InputError("there is no text to calibrate on; a few hundred are enough")
    judging = [example for example in held_out if example.text]
    return (
        given[:: max(1, len(given) // CALIBRATION_TEXTS)][:CALIBRATION_TEXTS],
        judging[:: max(1, len(judging) // HELD_OUT_TEXTS)][:HELD_OUT_TEXTS],
    )


def disjoint(calibration: Sequence[Sample], held_out: Sequence[Sample]) -> Samples:
    """Samples of which none is there twice, be it as other text of the same tokens.

    Raises:
        InputError: every held-out text is one of the calibration's.
    """
    first = {sample.ids.tobytes(): sample for sample in calibration}
    second = {sample.ids.tobytes(): sample for sample in held_out}
    judging = tuple(sample for key, sample in second.items() if key not in first)
    if not judging:
        raise InputError("every held-out text is, to the model, one of the calibration's; give other texts")
    return Samples(tuple(first.values()), judging)


def bundle_sampler(bundle: Path, manifest: Manifest, max_length: int) -> Sampler:
    """A sampler with the bundle's tokenizer, which cuts texts to ``max_length`` tokens or to the model's fewer.

    Raises:
        BundleError: the tokenizer is missing or cannot be read.
    """
    cut = replace(manifest, max_length=min(max_length, manifest.max_length))
    return Sampler(manifest, bundle_encoder(bundle, cut))


class Sampler:
    """Makes samples of texts, as the model's task reads them.

    Args:
        manifest: the bundle's.
        encoder: its tokenizer, which cuts.
    """

    def __init__(self, manifest: Manifest, encoder: TextEncoder) -> None:
        self._manifest = manifest
        self._encoder = encoder
        self._mask_id = encoder.token_id(manifest.mask_token) if manifest.mask_token else None

    def samples(self, examples: Sequence[Example]) -> tuple[Sample, ...]:
        """One of each text that has a token; of labels given as numbers the names.

        Raises:
            InputError: no text has one, or a text is not what the tokenizer takes.
        """
        texts = with_prompt([example.text for example in examples], self._manifest.sentence, None)  # as the runtime
        encoded = self._encoder.encode(texts)
        made = [
            self._sample(number, item, self._label(example.label))
            for number, (item, example) in enumerate(zip(encoded, examples, strict=True))
            if len(item.ids)
        ]
        if not made:
            raise InputError("no text has a token; look whether the tokenizer is the model's")
        return tuple(made[:MOST_FILLED] if self._manifest.task == "fill-mask" else made)

    def _label(self, label: str | None) -> str | None:
        names = self._manifest.labels or ()
        if label is None or label in names or not label.isdecimal() or int(label) >= len(names):
            return label
        return names[int(label)]

    def _sample(self, number: int, item: Encoded, label: str | None) -> Sample:
        manifest, ids = self._manifest, item.ids
        if manifest.task == "fill-mask" and self._mask_id is not None:
            return self._masked(number, item, self._mask_id, label)
        if manifest.pools_texts:
            return Sample(ids, label, None)
        if manifest.task == "question-answering" or manifest.pooling is not None:
            return Sample(ids, label, np.arange(len(ids)))
        return Sample(ids, label, np.unique(np.linspace(0, len(ids) - 1, min(MOST_TOKENS, len(ids))).astype(np.int64)))

    def _masked(self, number: int, item: Encoded, mask_id: int, label: str | None) -> Sample:
        """The masks that the text has; in one without, some of its words masked."""
        masked = item.ids.copy()
        places = np.flatnonzero(masked == mask_id)[:MOST_MASKED]
        if not len(places):
            words = np.flatnonzero([segment is not None for segment in item.segments])
            words = words if len(words) else np.arange(len(masked))
            count = min(max(1, round(MASKED * len(words))), MOST_MASKED)
            places = np.sort(np.random.default_rng(number).choice(words, count, replace=False))
            masked[places] = mask_id
        return Sample(masked, label, places)


def few_note(manifest: Manifest, quality: Quality) -> str | None:
    """What a reader should know where little was judged."""
    count, what = (quality.predictions, "predictions") if quality.agreement is not None else (quality.texts, "texts")
    if count >= FEW:
        return None
    share = f": one that differs is {100 / count:.1f} %" if count and what == "predictions" else ""
    return f"the {manifest.task} graphs were judged by {count} {what} only{share}; give more texts with --held-out"


def label_note(manifest: Manifest, samples: Sequence[Sample]) -> str | None:
    """Why macro-F1 was not measured, where texts have labels; None where it was, or none have any."""
    given = [sample.label for sample in samples if sample.label is not None]
    if not given or manifest.task != "text-classification" or manifest.activation != "softmax":
        return None
    names = manifest.labels or ()
    other = next((label for label in given if label not in names), None)
    if other is not None:
        return f"macro-F1 is not measured: a text has the label {other!r:.60}, the model's are {', '.join(names):.200}"
    if len(given) < len(samples):
        return f"macro-F1 is not measured: {len(samples) - len(given)} of {len(samples)} held-out texts have no label"
    return None
