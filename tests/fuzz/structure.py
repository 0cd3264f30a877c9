"""Structure: valid documents changed in places, as hypothesis draws them, and bytes that are cut and spliced."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.targets import ZERO, Target


@dataclass(frozen=True)
class Raw:
    """Text that stands in a JSON file as it is."""

    text: str


class Pairs(list):  # type: ignore[type-arg]
    """A JSON object as (key, value), so that a key may be there twice."""


DEEP = (20, 200, 900, 5_000, 100_000)
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 8, 64, 2**15, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63,
    2**64, -(2**63), 10**400, 0.0, -0.0, 0.5, -1.5, 1e-320, 1e-30, 1e30, 1e38, 1e39, 1e308,
    Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999"), Raw("9" * 5000), Raw("-"), Raw("01"), Raw(""),
    "", "a", "0", "1", "text", "\0", "../a", "..", ".", "/", "/dev/null", "/dev/zero", "a/b", "a\\b", "C:a", "\ud800",
    "\udfff\ud800", "\u202e", "\U0001f600", "a" * 300, "a" * 70_000, "(a+)+$", "(", "\n", "model.safetensors",
    "full_attention", "sliding_attention", "default", "linear", "dynamic", "yarn", "F64", "BF16", "F8_E4M3", "BOOL",
    [], {}, [[]], [None], [0], [1, 2], ["a"], [2**63, 2**63], [2**32, 2**32], [-1], {"a": 1}, {"0": "a"}, [{}],
    *(Raw("[" * depth + "]" * depth) for depth in DEEP), *(Raw('{"a":' * depth + "1" + "}" * depth) for depth in DEEP),
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = (
    st.sampled_from(NASTY)
    | st.recursive(
        LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    )
).map(lambda value: _copied(value))  # noqa: PLW0108 (it stands below)
HEADER = struct.Struct("<Q")  # the length of a safetensors file's header


def parse(text: str) -> Any:
    """JSON, its objects as Pairs."""
    return json.loads(text, object_pairs_hook=Pairs)


def dump(value: Any) -> str:
    """JSON text of what :func:`parse` gave, after changes."""
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, (Pairs, dict)):
        pairs = value.items() if isinstance(value, dict) else value
        return "{" + ",".join(f"{json.dumps(key)}:{dump(inner)}" for key, inner in pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    return json.dumps(value)


def _copied(value: Any) -> Any:
    """A copy that may be changed, objects as Pairs."""
    if isinstance(value, dict):
        return Pairs((key, _copied(inner)) for key, inner in value.items())
    if isinstance(value, Pairs):
        return Pairs((key, _copied(inner)) for key, inner in value)
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _places(value: Any) -> Iterator[tuple[Any, int]]:
    """Every list or Pairs with the number of one of its items."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield value, number
            yield from _places(item[1] if isinstance(value, Pairs) else item)


@st.composite
def changed(draw: st.DrawFn, text: str, parts: tuple[Any, ...] = ()) -> str:
    """A JSON text with up to four changes; ``parts``: values that mean something in it."""
    document, values = parse(text), VALUES | st.sampled_from(parts).map(_copied) if parts else VALUES
    for _ in range(draw(st.integers(1, 4))):
        places = list(_places(document))
        kind = draw(st.sampled_from(("value", "value", "value", "delete", "key", "again", "insert", "swap", "all")))
        if kind == "all" or not places:
            document = draw(values)
            continue
        where, number = draw(st.sampled_from(places))
        keyed = isinstance(where, Pairs)
        if kind == "value":
            value = draw(values)
            where[number] = (where[number][0], value) if keyed else value
        elif kind == "delete":
            del where[number]
        elif kind == "key" and keyed:
            where[number] = (draw(st.sampled_from(KEYS) | st.text(max_size=8)), where[number][1])
        elif kind == "swap":
            other, place = draw(st.sampled_from(places))
            value = other[place][1] if isinstance(other, Pairs) else other[place]
            where[number] = (where[number][0], _copied(value)) if keyed else _copied(value)
        elif kind == "insert" and keyed:
            where.insert(number, (draw(st.sampled_from(KEYS) | st.text(max_size=8)), draw(values)))
        else:
            count = draw(st.sampled_from((1, 1, 2, 50)))
            item = where[number]
            where[number:number] = [(item[0], _copied(item[1])) if keyed else _copied(item) for _ in range(count)]
    return dump(document)


KEYS = (
    "", "a", "0", "1", "-1", "1.0", " 1", "__class__", "__proto__", "dtype", "shape", "data_offsets", "__metadata__",
    "num_labels", "label2id", "id2label", "rope_scaling", "rope_parameters", "layer_types", "sliding_window", "factor",
    "num_hidden_layers", "quantization_config", "classifier_activation", "prompts", "default_prompt_name", "mask_token",
    "alpha_pattern", "rank_pattern", "lora_alpha", "use_rslora", "file", "engines", "checks", "packed_of", "\ud800",
)  # fmt: skip


@st.composite
def spliced(draw: st.DrawFn, seed: bytes) -> bytes:
    """Bytes cut, overwritten, doubled."""
    data = bytearray(seed)
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(("cut", "delete", "insert", "write", "double", "flip")))
        if kind == "cut":
            del data[start:]
        elif kind == "delete":
            del data[start : start + draw(st.integers(1, 16))]
        elif kind == "insert":
            data[start:start] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "write":
            piece = draw(st.binary(min_size=1, max_size=8) | st.sampled_from(PIECES))
            data[start : start + len(piece)] = piece
        elif kind == "double":
            data[start:start] = data[start : start + draw(st.integers(1, 64))]
        elif start < len(data):
            data[start] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


PIECES = (
    b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\x80", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r\n",
    b'"', b"\\", b"\\ud800", b"{", b"[", b"NaN", b"1e999", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
)  # fmt: skip


@st.composite
def framed(draw: st.DrawFn, seed: bytes) -> bytes:
    """A safetensors file whose header was changed, its length being right, mostly."""
    (length,) = HEADER.unpack_from(seed)
    header = draw(changed(seed[8 : 8 + length].decode())).encode("utf-8", "surrogatepass")
    stated = draw(st.sampled_from((len(header),) * 8 + (0, len(header) + 1, 2**31, 2**63, 2**64 - 1)))
    body = seed[8 + length :]
    return HEADER.pack(stated) + header + body[: draw(st.sampled_from((None,) * 4 + (0, 8, -4)))]


@st.composite
def literals(draw: st.DrawFn) -> bytes:
    """Python's literals, as the runtime is called with."""
    part = st.text(max_size=20) | st.sampled_from(("a b", "[MASK]", "\ud800", "\0", "a " * 50, "a" * 400))
    item = st.recursive(
        part | LEAVES | st.binary(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.tuples(inner, inner)
            | st.dictionaries(st.text(max_size=4), inner, max_size=2)
        ),
        max_leaves=8,
    )
    usual = st.lists(part, max_size=4) | st.lists(st.tuples(part, part), max_size=3)
    choices = st.lists(st.tuples(part, st.lists(part, max_size=3)), max_size=3)
    value = draw(usual | choices | st.lists(item, max_size=4) | item)
    return ascii(value).encode()


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Inputs of a target: its valid ones changed by structure where they have one, and by bytes."""
    kinds: list[st.SearchStrategy[bytes]] = []
    for seed in target.seeds:
        kinds.append(spliced(seed))
        if not target.documents:
            continue
        first, content = seed[:1], seed[1:]
        try:
            if content[8:9] == b"{" and content[:1] not in b"{[":
                kinds += [framed(content).map(lambda data, first=first: first + data)] * 3
                continue
            text = content.decode()
            parse(text)
        except ValueError:
            continue  # lines, or a table
        kinds += [
            changed(text, target.parts).map(lambda data, first=first: first + data.encode("utf-8", "surrogatepass")),
        ] * 3
    if target.name == "predict":
        kinds.append(literals())
    if target.name == "options":
        kinds.append(st.builds(lambda first, text: bytes([ZERO + first]) + text.encode("utf-8", "surrogatepass"),
                               st.integers(0, 10), st.text(max_size=40)))  # fmt: skip
    return st.one_of(kinds)
