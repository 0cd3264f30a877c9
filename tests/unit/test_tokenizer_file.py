"""A tokenizer.json that would make terabytes of a text, or stop the process, is refused in words."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from mbexport.errors import BundleError, InputError
from mbexport.runtime.text import TextEncoder
from mbexport.tokenizer_file import read_tokenizer

WORDS = {"[UNK]": 0, "a": 1, "b": 2}
# As SentencePiece writes it: the size of the tree, the tree, what characters are replaced by.
MAP = base64.b64encode((4).to_bytes(4, "little") + bytes(4) + b"a\0" + b"b" * 33 + b"\0").decode()
REPLACE = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def write(folder: Path, **parts: Any) -> Path:
    file = folder / "tokenizer.json"
    whole = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"},
    }  # fmt: skip
    file.write_text(json.dumps(whole | parts), encoding="utf-8")
    return file


def sequence(*normalizers: dict[str, Any]) -> dict[str, Any]:
    return {"normalizer": {"type": "Sequence", "normalizers": normalizers}}


def template(single: list[Any], ids: list[int]) -> dict[str, Any]:
    special = {"[X]": {"id": "[X]", "ids": ids, "tokens": ["a"] * len(ids)}}
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}]
    processor = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
    return {"post_processor": processor}


TEXT, SPECIAL = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[X]", "type_id": 0}}
USUAL: dict[str, dict[str, Any]] = {
    "words": {},
    "as SentencePiece's": sequence({"type": "Precompiled", "precompiled_charsmap": MAP}, REPLACE),
    "as Gemma's": sequence({"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}),
    "an escape in a word": {"model": {"type": "WordLevel", "vocab": WORDS | {"\\u0041": 3}, "unk_token": "[UNK]"}},
    "a split and bytes": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES]}},
    "a template": template([SPECIAL, TEXT, SPECIAL], [1]),
}
BOMB = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "replaced again and again": (sequence(BOMB, BOMB), "normalizer makes a text 1e+04 times as long"),
    "a long prefix": ({"normalizer": {"type": "Prepend", "prepend": "a" * 1000}}, "1e+03 times as long"),
    "bytes of bytes": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 50}}, "pre_tokenizer makes a text 1.13e+15",
    ),
    "many parts": (sequence(*[{"type": "NFC"}] * 65), "normalizer has 65 parts; at most 64"),
    "a map that replaces by much": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap":
            base64.b64encode((4).to_bytes(4, "little") + bytes(4) + b"b" * 300).decode()}}, "300 times as long",
    ),
    "a map larger than its file": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}},
        "says it has 4294967295 bytes, and there are 8",
    ),
    "the text a thousand times": (template([TEXT] * 1000, []), "post_processor has|post_processor makes a text 1e"),
    "a thousand special tokens": (template([SPECIAL, TEXT], [1] * 1000), "adds 1000 special tokens to a text"),
    "a panic": (
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"],
                   "continuing_subword_prefix": "##"}}, "no usable tokenizer: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", USUAL)
def test_usual_ones_are_read(name: str, tmp_path: Path) -> None:
    assert read_tokenizer(write(tmp_path, **USUAL[name]), 16).get_vocab_size() >= 3


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    parts, message = REFUSED[name]
    with pytest.raises(BundleError, match=message.replace("+", r"\+")):
        read_tokenizer(write(tmp_path, **parts), 16)


def test_a_name_in_escapes_is_the_same_name(tmp_path: Path) -> None:
    file = write(tmp_path, normalizer={"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="})
    file.write_text(file.read_text().replace("Precompiled", r"\u0050recompile\u0064"))
    with pytest.raises(BundleError, match="says it has 4294967295 bytes"):
        read_tokenizer(file, 16)


def test_a_panic_names_the_text_and_the_next_is_answered(tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    encoder = TextEncoder(write(tmp_path, pre_tokenizer=split), 16)
    with pytest.raises(InputError, match=r"text 1 cannot be tokenized.*retry-limit"):
        encoder.encode(["a", "a" * 40 + "c"])
    assert len(encoder.encode(["a"])[0].ids) == 1
