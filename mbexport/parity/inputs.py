"""The inputs of a comparison: texts by the subject's own tokenizer, else random tokens, as cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mbexport.checkpoint.spec import ModelSpec
from mbexport.errors import InputError
from mbexport.parity.described import Described
from mbexport.parity.samples import TEXTS, Case, IntArray, build_cases, places_of
from mbexport.runtime.text import TextEncoder
from mbexport.texts import Text

RANDOM_TEXTS, RANDOM_LENGTH = 16, 40


@dataclass(frozen=True)
class Inputs:
    """Cases, the tokens of each whose outputs are compared (None: outputs of whole texts), and where they come from.

    ``texts``: those given, by number, a pair in one; ``described``: in words; ``notes``: what is to be said of them.
    """

    cases: list[Case]
    places: list[IntArray | None]
    texts: tuple[str, ...]
    described: str
    notes: tuple[str, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest input."""
        return max(case.length for case in self.cases)


def make_inputs(model: Described, tokenizers: Sequence[Path], texts: Sequence[Text] | None, max_length: int) -> Inputs:
    """Inputs for a model.

    Args:
        model: the model.
        tokenizers: files of tokenizers, the one that is used first; others are held against it.
        texts: what to compare on; None for the set that mbexport brings.
        max_length: no longer inputs than this.

    Raises:
        InputError: texts without a tokenizer, or one that is not the model's.
    """
    if max_length < 1:
        raise InputError(f"max_length is {max_length}, expected 1 or more")
    length = min(max_length, model.max_length)
    if tokenizers:
        given = list(texts if texts is not None else TEXTS)
        ids, notes = _token_ids(model, tokenizers, given)
        words = tuple(text if isinstance(text, str) else " / ".join(text) for text in given)
        described = f"{len(given)} texts"
    elif texts is not None:
        raise InputError(f"{model.path} holds no tokenizer.json, so texts cannot be used; leave --data out")
    else:
        rng = np.random.default_rng(0)
        random = rng.integers(0, model.spec.vocab_size, (RANDOM_TEXTS, RANDOM_LENGTH))
        ids, notes, words = dict(enumerate(random)), (), ()
        described = "random token ids (the bundle has no tokenizer)"
    numbers = list(ids) if words else None
    cases = build_cases(list(ids.values()), model.pad_id, model.spec.half_window, length, numbers=numbers)
    return Inputs(cases, [places_of(case, model.spec) for case in cases], words, described, notes)


def predicts(spec: ModelSpec) -> str | None:
    """What a prediction of a model is, as ``Terms.predicts``."""
    if spec.task == "question-answering":
        return "units"
    return "outputs" if spec.head is not None and spec.head.outputs > 1 else None


def _token_ids(
    model: Described, tokenizers: Sequence[Path], texts: Sequence[Text]
) -> tuple[dict[int, IntArray], tuple[str, ...]]:
    """Ids of texts by number, those without tokens left out, and a note for a tokenizer that gives others."""
    encodings = [_encoded(file, model.max_length, texts) for file in tokenizers]
    usable = {number: ids for number, ids in enumerate(encodings[0]) if len(ids)}
    if not usable or max(int(ids.max()) for ids in usable.values()) >= model.spec.vocab_size:
        raise InputError(
            f"the texts give no tokens, or ids beyond the {model.spec.vocab_size} rows of the embedding; "
            "the tokenizer is not the model's"
        )
    notes = []
    for file, others in zip(tokenizers[1:], encodings[1:], strict=True):
        differing = [
            number for number, pair in enumerate(zip(encodings[0], others, strict=True)) if not np.array_equal(*pair)
        ]
        if differing:
            notes.append(
                f"{file} gives other tokens than {tokenizers[0]} for {len(differing)} of {len(texts)} texts, text "
                f"{differing[0]} first: the graphs are compared on the latter's, but their answers to texts will differ"
            )
    return usable, tuple(notes)


def _encoded(file: Path, max_length: int, texts: Sequence[Text]) -> list[IntArray]:
    return [item.ids for item in TextEncoder(file, max_length).encode(texts)]
