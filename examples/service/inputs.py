"""From a request's bytes to texts, and answers to JSON; all that a request may not hold is refused here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from .errors import ServiceError

MOST_NAMED = 20  # bad items that an error lists


@dataclass(frozen=True)
class Limits:
    """Of one request: items and their parts, characters of each part."""

    texts: int
    chars: int


@dataclass(frozen=True)
class Call:
    """What a request asks for."""

    items: list[Any]  # texts, pairs as tuples
    prompt_name: str | None = None
    truncate_dim: int | None = None


def read_call(body: bytes, fields: tuple[str, ...], task: str, limits: Limits) -> Call:
    """A request's body, checked.

    Args:
        body: JSON in UTF-8.
        fields: that it may have beside ``inputs``.
        task: the model's.
        limits: that it is held to.

    Raises:
        ServiceError: 400 no JSON, 413 too many texts, 422 anything else; bad texts by their numbers.
    """
    found = _parse(body)
    if not isinstance(found, dict) or "inputs" not in found:
        raise ServiceError(422, "invalid_request", 'expected a JSON object with "inputs": a text, or a list of texts')
    unknown = found.keys() - {"inputs", *fields}
    if unknown:
        known = ", ".join(("inputs", *fields))
        raise ServiceError(422, "invalid_request", f"unknown field {min(unknown)!r:.80}; the fields are {known}")
    inputs, prompt, size = found["inputs"], found.get("prompt_name"), found.get("truncate_dim")
    if not isinstance(inputs, (str, list)):
        raise ServiceError(422, "invalid_request", f"inputs is {_kind(inputs)}, expected a text or a list of texts")
    if prompt is not None and not isinstance(prompt, str):
        raise ServiceError(422, "invalid_request", f"prompt_name is {_kind(prompt)}, expected a text or null")
    if size is not None and (type(size) is not int or not 1 <= size < 2**31):
        raise ServiceError(
            422, "invalid_request", f"truncate_dim is {_kind(size)}, expected a whole number from 1, or null"
        )
    items = [inputs] if isinstance(inputs, str) else inputs
    return Call(_checked(items, task, limits), prompt, size)


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise ServiceError(400, "invalid_json", "the body is nested too deeply") from None
    except ValueError as cause:  # no UTF-8, no JSON, a number of thousands of digits
        raise ServiceError(400, "invalid_json", f"the body is no JSON in UTF-8: {cause}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _checked(items: list[Any], task: str, limits: Limits) -> list[Any]:
    """The items, pairs as tuples."""
    count, parts = len(items), []
    if count <= limits.texts:  # else it takes long only to look at them
        parts = [_parts(item, task) for item in items]
        count = max(count, sum(len(own) for own in parts if own))
    if count > limits.texts:
        message = f"{count} texts, at most {limits.texts} in a request; send them in several"
        raise ServiceError(413, "too_many_texts", message)
    faults = []
    for number, (item, own) in enumerate(zip(items, parts, strict=True)):
        fault = _fault(item, own, task, limits.chars)
        if fault:
            faults.append({"item": number, "message": fault})
    if faults:
        message = f"{len(faults)} of {len(items)} texts cannot be used, and nothing was computed; "
        message += f"item {faults[0]['item']}: {faults[0]['message']}"
        raise ServiceError(422, "invalid_texts", message, items=faults[:MOST_NAMED])
    return [tuple(item) if isinstance(item, list) else item for item in items]


def _parts(item: Any, task: str) -> list[str] | None:
    """The strings that an item is made of, None where it is not what the task takes."""
    if isinstance(item, str):
        return [item] if task not in ("question-answering", "multiple-choice") else None
    if not isinstance(item, list) or len(item) != 2:
        return None
    first, second = item
    own = [first, *second] if task == "multiple-choice" and isinstance(second, list) and second else [first, second]
    if task == "multiple-choice" and not isinstance(second, list):
        return None
    return own if all(isinstance(part, str) for part in own) else None


TAKES = {
    "question-answering": "[question, context]",
    "multiple-choice": "[text, [choice, ...]]",
}


def _fault(item: Any, parts: list[str] | None, task: str, most: int) -> str | None:
    if parts is None:
        return f"it is {_kind(item)}, expected {TAKES.get(task, 'a text, or a pair [text, text]')}"
    for part in parts:
        if len(part) > most:
            return f"it has {len(part)} characters, at most {most}; split it"
        try:
            part.encode()
        except UnicodeEncodeError as cause:
            return f"it holds a lone surrogate at character {cause.start}, which is no text; replace it by U+FFFD"
    return None


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return names.get(type(value)) or f"the number {value!r:.40}"
