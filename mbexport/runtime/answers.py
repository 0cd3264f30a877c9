"""From what a caller gives to texts for the tokenizer, and from a graph's outputs to an answer, by task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mbexport.errors import InputError
from mbexport.manifest import Manifest
from mbexport.runtime.forward import Outputs
from mbexport.runtime.heads import FloatArray, choice, classification, pool, shortened, top_tokens
from mbexport.runtime.spans import best_span
from mbexport.runtime.text import Encoded
from mbexport.texts import Text

TOP_TOKENS = 5  # answers to one mask


@dataclass(frozen=True)
class Prepared:
    """One item of a call, checked and tokenized; made by :meth:`mbexport.runtime.Model.prepare`.

    Attributes:
        item: what was given; a list of two as a tuple.
        parts: its texts, tokenized: one, or of multiple choice one for each choice.
        truncate_dim: how many numbers of a vector are wanted, None for the model's own setting.
    """

    item: Any
    parts: tuple[Encoded, ...]
    truncate_dim: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens that are computed for it."""
        return sum(len(part.ids) for part in self.parts)


def items_of(texts: object) -> list[Any]:
    """The items as a list; pairs that are lists, as JSON has them, as tuples.

    Raises:
        InputError: it is one text, or nothing that can be gone through.
    """
    if isinstance(texts, (str, bytes, dict)) or not isinstance(texts, Iterable):
        raise InputError(f"texts is a {type(texts).__name__}, expected a list of texts: [text]")
    return [tuple(item) if isinstance(item, list) and len(item) == 2 else item for item in texts]


def characters(item: Any) -> int:
    """Of a text, or of all texts that an item holds; what is no text has none."""
    if isinstance(item, (tuple, list)):
        return sum(map(characters, item))
    return len(item) if isinstance(item, str) else 0


def parts_of(items: Sequence[Any], task: str) -> list[list[Text]]:
    """The texts that each item is made of: itself, or of multiple choice a pair for each choice.

    Raises:
        InputError: an item is not what the task takes.
    """
    if task == "multiple-choice":
        return [[(item[0], option) for option in item[1]] for item in map(_question, range(len(items)), items)]
    if task == "question-answering" and not all(isinstance(item, tuple) for item in items):
        raise InputError("question answering takes pairs: [(question, context), ...]")
    return [[item] for item in items]


def _question(number: int, item: Any) -> tuple[str, Sequence[str]]:
    if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[1], (list, tuple)) or not item[1]:
        raise InputError(
            f"item {number}: multiple choice takes pairs of a text and its choices: [(text, [choice, ...]), ...]"
        )
    return item[0], item[1]


def answer(prepared: Prepared, outputs: Sequence[Outputs], manifest: Manifest, decode: Callable[[int], str]) -> Any:
    """The answer to one item, as :meth:`mbexport.runtime.Model.__call__` describes it.

    Args:
        prepared: the item.
        outputs: of each of its parts.
        manifest: the bundle's.
        decode: from a token's id to its text.
    """
    task, item, (first, *_) = manifest.task, prepared.item, outputs
    if task == "text-classification":
        return classification(first["logits"], manifest)
    if task == "multiple-choice":
        return choice(np.array([output["logits"] for output in outputs]), list(item[1]))
    if task == "question-answering":
        return best_span(first["start_logits"], first["end_logits"], prepared.parts[0], item[1])
    if task == "fill-mask":
        return [top_tokens(row, TOP_TOKENS, decode) for row in first["logits"]]
    if task == "token-classification":
        from mbexport.runtime.entities import entities

        text = item if isinstance(item, str) else item[0]
        return entities(first["logits"], prepared.parts[0], text, manifest.labels or ())
    return _vectors(first, manifest, prepared.truncate_dim)


def _vectors(output: Outputs, manifest: Manifest, truncate_dim: int | None) -> FloatArray:
    """An encoder's: of the text [size], or without pooling of each token [tokens, size].

    Arrays of their own: views would keep all of their batch in memory.
    """
    sentence = manifest.sentence
    if manifest.pooling is None:
        vectors = output["token_embeddings"]
    elif sentence is None:
        vectors = shortened(pool(output["last_hidden_state"], manifest.pooling), truncate_dim)
    else:
        size = truncate_dim or sentence.truncate_dim
        vectors = shortened(output["sentence_embedding"], size, renormalize=sentence.normalized)
    return np.array(vectors)
