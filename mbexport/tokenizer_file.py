"""A tokenizer.json, read and checked: a file of a kilobyte may make terabytes of a text.

Each ``ByteLevel`` doubles what is no ASCII, each ``Replace`` may put a text in the place of a character, and in a
sequence these factors multiply. What tokenizers of models do lies far below what is refused here.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from mbexport.errors import BundleError, is_refusal
from mbexport.files import LARGEST_TOKENIZER, read_bounded

MOST_GROWTH = 256  # times the length of a text; the map of SentencePiece's nmt_nfkc alone has 33
MOST_PARTS = 64  # of a normalizer, a pre-tokenizer or a post-processor
ESCAPED = re.compile(rb"\\u00[2-7]")  # by which the name of a part could be written in another way


def read_tokenizer(file: Path, max_length: int) -> Any:
    """A ``tokenizers.Tokenizer``, without padding, that makes of a text no more than tokenizers of models do.

    Args:
        file: a tokenizer.json.
        max_length: tokens that the model takes.

    Raises:
        BundleError: the file is damaged, or asks for more.
    """
    from tokenizers import Tokenizer  # here, beside a graph that is being loaded

    content = read_bounded(file, BundleError, LARGEST_TOKENIZER)
    try:
        _check_content(content)
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_padding()
        _check_growth(tokenizer, max_length)
    except BaseException as cause:  # tokenizers raises bare Exception, and panics
        if not is_refusal(cause):
            raise
        raise BundleError(f"{file} is no usable tokenizer: {cause}; export again") from cause
    return tokenizer


def _check_content(content: bytes) -> None:
    """Refuse what tokenizers would take memory for while it reads the file: a map that says it is larger than it is."""
    if b"Precompiled" not in content and not (b"\\u00" in content and ESCAPED.search(content)):
        return
    try:
        parts = _parts(json.loads(content).get("normalizer"))
    except (ValueError, AttributeError, RecursionError):
        return  # tokenizers refuses it, and says where
    for part in parts:
        if part.get("type") == "Precompiled":
            _strings_of_map(part)


def _check_growth(tokenizer: Any, max_length: int) -> None:
    """Refuse a tokenizer that makes far more of a text than there is."""
    for name in ("normalizer", "pre_tokenizer", "post_processor"):
        stage = getattr(tokenizer, name)
        if stage is None:
            continue
        parts = _parts(json.loads(stage.__getstate__()))
        grown = math.prod(map(_growth, parts))
        if len(parts) > MOST_PARTS or grown > MOST_GROWTH:
            what = f"has {len(parts)} parts" if len(parts) > MOST_PARTS else f"makes a text {grown:.3g} times as long"
            raise BundleError(f"its {name} {what}; at most {MOST_PARTS} parts and {MOST_GROWTH} times are accepted")
    added = max(map(tokenizer.num_special_tokens_to_add, (False, True)))
    if added > max(max_length, MOST_PARTS):
        raise BundleError(f"it adds {added} special tokens to a text, and the model takes {max_length} in all")


def _parts(stage: Any) -> list[dict[str, Any]]:
    """The parts of a stage, those of sequences one by one."""
    if not isinstance(stage, dict):
        return []
    inner = [part for key in ("normalizers", "pretokenizers", "processors") for part in stage.get(key) or ()]
    return [found for part in inner for found in _parts(part)] if inner else [stage]


def _growth(part: dict[str, Any]) -> int:
    """The most characters that a part makes of one."""
    kind = part.get("type")
    if kind == "ByteLevel":
        return 2
    if kind == "Prepend":
        return max(1, len(part["prepend"]))
    if kind == "Replace":
        written, found = part["content"], part["pattern"].get("String")
        return max(1, -(-len(written) // len(found))) if found else len(written) + 1  # a Regex may match nothing
    if kind == "Precompiled":
        return max([1, *map(len, _strings_of_map(part))])
    if kind == "TemplateProcessing":
        texts = [
            [piece["Sequence"]["id"] for piece in part[form] if "Sequence" in piece] for form in ("single", "pair")
        ]
        return max([1, *(form.count(text) for form in texts for text in form)])
    return 1


def _strings_of_map(part: dict[str, Any]) -> list[bytes]:
    """What SentencePiece's map of characters has them replaced by; its first number is the size of what is before it.

    Raises:
        BundleError: that is more than there is.
    """
    import base64  # few tokenizers have such a map

    try:
        content = base64.b64decode(part["precompiled_charsmap"])
    except (KeyError, TypeError, ValueError):
        return [b""]  # tokenizers refuses it, and says where
    size = int.from_bytes(content[:4], "little")
    if size > len(content) - 4:
        raise BundleError(f"its Precompiled normalizer says it has {size} bytes, and there are {len(content)}")
    return content[4 + size :].split(b"\0")
