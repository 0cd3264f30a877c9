"""Texts to token ids, by the bundle's own tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mbexport.errors import BundleError, InputError, is_refusal
from mbexport.files import read_json
from mbexport.manifest import Manifest, Sentence
from mbexport.options import DEFAULT_VOCABULARY
from mbexport.runtime.beginnings import beginning, holds, splits_at_blanks
from mbexport.texts import Text
from mbexport.tokenizer_file import read_tokenizer

ANSWERED_BY_TOKENS = ("token-classification", "question-answering", "fill-mask")


@dataclass(frozen=True)
class Encoded:
    """One tokenized text, and nothing of what was cut off it.

    ``ids``: int64 [tokens], special tokens included; ``truncated``: whether the text was cut to fit. By token,
    where the encoder keeps them: ``segments``, which of the texts it is of, None for special tokens, ``words``
    and ``offsets``, which word and characters it stands for.
    """

    ids: npt.NDArray[np.int64]
    truncated: bool
    segments: Sequence[int | None] = ()
    words: Sequence[int | None] = ()
    offsets: Sequence[tuple[int, int]] = ()

    def words_of(self, segment: int) -> list[tuple[int, int, int, int]]:
        """(token, word, start, end) of a segment's tokens that stand for characters [start, end)."""
        parts = zip(self.segments, self.words, self.offsets, strict=True)
        return [
            (token, word, *offsets)
            for token, (sequence, word, offsets) in enumerate(parts)
            if sequence == segment and word is not None and offsets[1] > offsets[0]
        ]


class TextEncoder:
    """Tokenizes as the checkpoint's tokenizer does, special tokens included, never padding.

    Args:
        tokenizer_file: a tokenizer.json.
        max_length: tokens per text, special tokens counted; what is longer is cut.
        keep_first: of a pair, only the second segment is cut.
        keep_offsets: keep segments, words and offsets of tokens.
        vocabulary: ids that the model has, from 0; None does not look at them.

    Raises:
        BundleError: the file is missing or cannot be read.
    """

    def __init__(
        self,
        tokenizer_file: Path,
        max_length: int,
        *,
        keep_first: bool = False,
        keep_offsets: bool = True,
        vocabulary: int | None = None,
    ) -> None:
        self._keep_offsets, self._max_length, self._vocabulary = keep_offsets, max_length, vocabulary
        if not tokenizer_file.is_file():
            raise BundleError(
                f"{tokenizer_file} is missing, so texts cannot be tokenized; put the checkpoint's tokenizer.json there"
            )
        # The file may fix padding and truncation; this runtime decides both itself.
        self._tokenizer = read_tokenizer(tokenizer_file, max_length)
        self._tokenizer.enable_truncation(max_length, strategy="only_second" if keep_first else "longest_first")
        self._by_beginnings = splits_at_blanks(self._tokenizer)

    def encode(self, texts: Sequence[Text]) -> list[Encoded]:
        """Token ids of each text, in order.

        Raises:
            InputError: an item is no text (nor a pair of texts), is no valid Unicode, has a first segment that
                leaves no room for the second, or a token that the model does not have.
        """
        for number, text in enumerate(texts):
            _check(number, text)
        parts = [self._beginning(text) for text in texts]
        try:
            encodings = self._tokenizer.encode_batch(parts)
            for number, (text, part) in enumerate(zip(texts, parts, strict=True)):
                if len(part) < len(text) and not holds(encodings[number], part):
                    encodings[number] = self._tokenizer.encode_batch([text])[0]
        except BaseException as cause:
            if not is_refusal(cause):
                raise
            raise InputError(self._fault(texts, cause)) from cause
        encoded = [self._encoded(encoding) for encoding in encodings]
        for number, item in enumerate(encoded):
            self.check_ids(item.ids, f"text {number}")
        return encoded

    def check_ids(self, ids: npt.NDArray[np.int64], name: str) -> None:
        """Refuse ids beyond the vocabulary: ONNX Runtime fails on them, a GPU reads what lies there.

        Args:
            ids: of a text, [tokens].
            name: what the error calls the text.

        Raises:
            InputError: names the first of them.
        """
        if self._vocabulary is None or not len(ids) or ids.max() < self._vocabulary:
            return
        found = int(ids[ids >= self._vocabulary][0])
        token = self._tokenizer.id_to_token(found) if found < 2**32 else None
        raise InputError(
            f"{name} holds the id {found}{f' of the token {token!r:.80}' if token else ''}, and the model's embedding "
            f"has {self._vocabulary} rows, so ids end at {self._vocabulary - 1}; take the tokenizer that the model was "
            "trained with, or resize_token_embeddings, train and export again"
        )

    def _beginning(self, text: Text) -> Any:
        """What to tokenize of a text; of pairs, which are cut by their lengths, all."""
        return beginning(text, self._max_length) if self._by_beginnings and isinstance(text, str) else text

    def _encoded(self, encoding: Any) -> Encoded:
        ids, truncated = np.array(encoding.ids, dtype=np.int64), bool(encoding.overflowing)
        if not self._keep_offsets:
            return Encoded(ids, truncated)
        return Encoded(ids, truncated, encoding.sequence_ids, encoding.word_ids, encoding.offsets)

    def _fault(self, texts: Sequence[Text], cause: BaseException) -> str:
        """Which of the texts the tokenizer refuses, and why."""
        for number, text in enumerate(texts):
            try:
                self._tokenizer.encode_batch([text])
            except BaseException as own:  # noqa: PERF203 (only after a failure)
                if not is_refusal(own):
                    raise
                return f"text {number} cannot be tokenized (its first segment may leave no room for the second): {own}"
        return f"the texts cannot be tokenized: {cause}"

    def token_id(self, token: str) -> int | None:
        """The id of a token, None where the vocabulary has none of that name."""
        number: int | None = self._tokenizer.token_to_id(token)
        return number

    def decode(self, number: int) -> str:
        """The text that a token stands for."""
        return str(self._tokenizer.decode([number], skip_special_tokens=False))


def bundle_encoder(bundle: Path, manifest: Manifest) -> TextEncoder:
    """The tokenizer of a bundle, set up for its task.

    Raises:
        BundleError: it or config.json is missing or cannot be read.
    """
    config = read_json(bundle / "config.json", BundleError)
    vocabulary = config.get("vocab_size", DEFAULT_VOCABULARY)
    if type(vocabulary) is not int or vocabulary < 1:
        raise BundleError(f"{bundle / 'config.json'}: vocab_size is {vocabulary!r:.80}, expected a whole number from 1")
    return TextEncoder(
        bundle / "tokenizer.json",
        manifest.max_length,
        keep_first=manifest.task == "question-answering",
        keep_offsets=manifest.task in ANSWERED_BY_TOKENS,
        vocabulary=vocabulary,
    )


def with_prompt(texts: Sequence[Text], sentence: Sentence | None, name: str | None) -> Sequence[Text]:
    """Texts behind one of a sentence-transformers model's prompts; pairs stay as they are.

    Args:
        texts: the texts.
        sentence: the model's pipeline, None where it has none.
        name: of the prompt; None takes the model's default, if it has one.

    Raises:
        InputError: there is no such prompt.
    """
    prompts = sentence.prompts if sentence else {}
    name = name or (sentence.default_prompt if sentence else None)
    if name is None:
        return texts
    if name not in prompts:
        raise InputError(f"there is no prompt {name!r}; the model has {', '.join(prompts) or 'none'}")
    return [prompts[name] + text if isinstance(text, str) else text for text in texts]


def check_masks(token_ids: Sequence[npt.NDArray[np.int64]], mask_id: int, manifest: Manifest) -> None:
    """Refuse a text without a mask to fill.

    Raises:
        InputError: names the text.
    """
    for number, ids in enumerate(token_ids):
        if not (ids == mask_id).any():
            raise InputError(f"text {number} has no {manifest.mask_token} in its first {manifest.max_length} tokens")


def _check(number: int, text: object) -> None:
    parts = text if isinstance(text, tuple) and len(text) == 2 else (text,)
    for part in parts:
        if not isinstance(part, str):
            raise InputError(f"text {number} is a {type(part).__name__}, expected a str or a pair of str")
        try:
            part.encode("utf-8")
        except UnicodeEncodeError as cause:
            raise InputError(
                f"text {number} holds a lone surrogate at character {cause.start}, which no tokenizer can read; "
                "decode its bytes with errors='replace'"
            ) from cause
