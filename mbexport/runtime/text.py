"""Texts to token ids, by the bundle's own tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from mbexport.errors import BundleError, InputError

Text = str | tuple[str, str]  # a pair is two segments of one input, as cross-encoders take them


@dataclass(frozen=True)
class Encoded:
    """Token ids of one text, int64 [tokens], and whether it was cut to fit."""

    ids: npt.NDArray[np.int64]
    truncated: bool


class TextEncoder:
    """Tokenizes as the checkpoint's tokenizer does, special tokens included, never padding.

    Args:
        tokenizer_file: a tokenizer.json.
        max_length: tokens per text, special tokens counted; what is longer is cut.

    Raises:
        BundleError: the file is missing or cannot be read.
    """

    def __init__(self, tokenizer_file: Path, max_length: int) -> None:
        if not tokenizer_file.is_file():
            raise BundleError(
                f"{tokenizer_file} is missing, so texts cannot be tokenized; put the checkpoint's tokenizer.json there"
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
            # The file may fix padding and truncation; this runtime decides both itself.
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(max_length)
        except Exception as cause:  # tokenizers raises bare Exception
            raise BundleError(f"{tokenizer_file} is no usable tokenizer: {cause}; export again") from cause

    def encode(self, texts: Sequence[Text]) -> list[Encoded]:
        """Token ids of each text, in order.

        Raises:
            InputError: an item is no text (nor a pair of texts), or is no valid Unicode.
        """
        for number, text in enumerate(texts):
            _check(number, text)
        return [
            Encoded(np.array(encoding.ids, dtype=np.int64), bool(encoding.overflowing))
            for encoding in self._tokenizer.encode_batch(list(texts))
        ]


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
