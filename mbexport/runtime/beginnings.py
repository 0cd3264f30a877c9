"""The beginning of a long text, where its first tokens are made of that alone.

A tokenizer makes tokens of a whole text and then cuts: of a text of 10 MB for seconds, in hundreds of megabytes.
Where it never looks across a blank, what stands far behind the last token that is kept changes nothing.
"""

from __future__ import annotations

from typing import Any

CHARACTERS_A_TOKEN = 16  # of the beginning that is tried; texts of less to a token are tokenized whole after all
LEAST = 4096  # characters, below which there is nothing to gain
MARGIN = 256  # characters; no token that was added to a vocabulary is as long
SPLITTERS = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
NORMALIZERS = ("NoneType", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "BertNormalizer")  # these look at neighbours only


def splits_at_blanks(tokenizer: Any) -> bool:
    """Whether no token but an added one goes across a blank, so that beginnings can be tokenized alone."""
    splitter = tokenizer.pre_tokenizer
    name = type(splitter).__name__
    if type(tokenizer.normalizer).__name__ not in NORMALIZERS:
        return False
    return name in SPLITTERS or (name == "ByteLevel" and bool(splitter.use_regex))


def beginning(text: str, tokens: int) -> str:
    """A first part of the text that is enough for so many tokens of ordinary text; all of it if it is short."""
    return text[: max(LEAST, CHARACTERS_A_TOKEN * tokens) + MARGIN]


def holds(encoding: Any, part: str) -> bool:
    """Whether the tokens that were kept of a beginning are those of the whole text: they end before one of its blanks.

    Args:
        encoding: the tokenizer's of the beginning, cut to the tokens that are kept.
        part: the beginning.
    """
    kept = max((end for _, end in encoding.offsets), default=0)
    blank = max(part.rfind(blank, 0, len(part) - MARGIN) for blank in (" ", "\n"))
    return bool(encoding.overflowing) and kept <= blank
