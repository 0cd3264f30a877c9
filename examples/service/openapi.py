"""What /openapi.json says of the bodies; inputs.py is what checks them."""

from __future__ import annotations

from typing import Any

_PAIR = {"type": "array", "minItems": 2, "maxItems": 2}
_INPUTS = {
    "description": "A text, or a list of items: texts, pairs [text, text], or [text, [choice, ...]], as the task takes",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": [{"type": "string"}, _PAIR]}}],
}


def _body(**fields: dict[str, Any]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["inputs"],
        "properties": {"inputs": _INPUTS, **fields},
        "additionalProperties": False,
    }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


PREDICT = _body()
EMBED = _body(
    prompt_name={"type": ["string", "null"], "description": "of a prompt of the model's to put before each text"},
    truncate_dim={"type": ["integer", "null"], "minimum": 1, "description": "numbers of a vector to keep (Matryoshka)"},
)
