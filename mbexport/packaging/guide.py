"""README.md of a repository: how to start Triton with it, how to ask it, what it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mbexport.packaging.config import BYTES_PER_TOKEN, LONGEST_WAIT, MOST_TEXTS, MOST_WAITING, Plan, text_tensors
from mbexport.version import __version__

EXAMPLES: dict[str, list[Any]] = {  # by task, of each input
    "text-classification": ["The striker scored twice in the final minutes of the match."],
    "token-classification": ["Ada Lovelace lived in London."],
    "question-answering": ["Where did Ada Lovelace live?", "Ada Lovelace lived in London."],
    "multiple-choice": ["The capital of France is", ["Paris.", "Berlin."]],
    "fill-mask": ["Paris is the capital of {mask}."],
    "feature-extraction": ["The striker scored twice in the final minutes of the match."],
}
ANSWERS = {
    "ANSWER": "`ANSWER`, for each text the answer of `mbexport.runtime`, as JSON in a string",
    "EMBEDDING": "`EMBEDDING`, float32 [texts, size]; request parameters `prompt_name` and `truncate_dim` are those of "
    "`Model.embed`",
    "TOKEN_EMBEDDINGS": "`TOKEN_EMBEDDINGS`, float32 [texts, tokens, size], of which the first `TOKENS` of a row are "
    "its own and the rest zeros",
}


def guide(plan: Plan, output: Path) -> str:
    """The page, in Markdown.

    Args:
        plan: of the repository.
        output: where it is written.
    """
    choice, manifest = plan.choice, plan.manifest
    inputs, outputs = text_tensors(plan)
    names = ", ".join(f"`{item['name']}`" + (" (optional)" if item.get("optional") else "") for item in inputs)
    return f"""# {plan.name}: a Triton model repository

Written by `mbexport package` {__version__} from a {manifest.task} bundle ({manifest.source.name}).

| Model | Takes | Gives | Runs |
|---|---|---|---|
| `{plan.name}` | {names}: strings | {", ".join(f"`{item['name']}`" for item in outputs)} | Python backend, \
which calls the other one |
| `{plan.graph_model}` | {_listed(plan.signature.inputs)} | {_listed(plan.signature.outputs)} | `{choice.file}`, \
{choice.precision}, {"TensorRT" if choice.engine else "ONNX Runtime"}, {choice.device.upper()} |

Requests are joined as *texts*: Triton joins only what has one shape, and token ids of two texts have not.
`{plan.name}` takes up to {MOST_TEXTS} texts at a time, sorts them by length, and calls `{plan.graph_model}` with runs
that need little padding. What waits beyond {MOST_WAITING} requests, or longer than {LONGEST_WAIT // 1_000_000} s, is \
refused (HTTP 503).

## Start

`{plan.name}` needs `pip install mbexport=={__version__}` where Triton runs; `docker/triton.Dockerfile` of mbexport
makes such an image. {_needs(plan)}
Before 24.12 Triton's Python backend needs `numpy<2`, too.

    docker run --rm --shm-size={plan.shared_memory}g -p 8000:8000 -p 8001:8001 -p 8002:8002{_gpus(plan)} \\
        -v "$PWD/{output.name}:/models:ro" mbexport-triton tritonserver --model-repository=/models

Shared memory (`--shm-size`) is where tokens and outputs pass between the two models. The server is ready
(`GET /v2/health/ready`) once both models are loaded and `{plan.graph_model}` has made its warm-up runs.{_threads(plan)}
Triton stays ready after a CUDA error that only a restart mends: let your probe send a real request.

## Ask

    curl -s localhost:8000/v2/models/{plan.name}/infer -d '{json.dumps(example(plan))}'

gives {ANSWERS[outputs[0]["name"]]}.
A request may hold up to {MOST_TEXTS} texts, one a row. What is wrong with a request (no UTF-8, no mask to fill, ...)
is an error of that request alone (HTTP 400). Texts of more than {manifest.max_length} tokens are cut, which Triton's
log says once; those of more than {BYTES_PER_TOKEN * manifest.max_length} bytes are refused.

Clients that tokenize by themselves, with this bundle's `tokenizer.json` and no more than {manifest.max_length} tokens,
may ask `{plan.graph_model}`: `input_ids` and `attention_mask` (1 for tokens, 0 for padding), int64 [texts, tokens]\
{_positions(plan)}. Nothing checks their ids (0 to `vocab_size` of `config.json` less 1; a GPU reads what lies beyond),
nor whether outputs are NaN.

## Seen and not seen

The release of mbexport that wrote this ran such repositories on Triton 2.51 (24.10) on a CPU: server and Python
backend as NVIDIA builds them, the ONNX Runtime backend built from its sources of that release. NVIDIA's images, the
TensorRT backend and GPUs it has not been run on; the settings for them follow NVIDIA's documentation and sources.
"""


def example(plan: Plan) -> dict[str, Any]:
    """A request in Triton's JSON, of one text."""
    inputs, _ = text_tensors(plan)
    mask = plan.manifest.mask_token or ""
    tensors = []
    for item, value in zip(inputs, EXAMPLES[plan.manifest.task], strict=False):  # what is optional is left out
        row = [text.replace("{mask}", mask) for text in (value if isinstance(value, list) else [value])]
        tensors.append({"name": item["name"], "datatype": "BYTES", "shape": [1, len(row)], "data": row})
    return {"inputs": tensors}


def _listed(tensors: tuple[Any, ...]) -> str:
    return ", ".join(f"`{t.name}` [{', '.join(map(str, t.shape))}]" for t in tensors)


def _needs(plan: Plan) -> str:
    choice = plan.choice
    if choice.engine:
        return (
            f"The engine was built by TensorRT {choice.engine.builder_version} on {choice.engine.gpu} (compute "
            f"capability {choice.engine.compute_capability}): Triton's image must have that very release, and run on "
            "that GPU."
        )
    if choice.graph.fused:
        return "The graph needs ONNX Runtime 1.23, which Triton has from 25.08 on."
    return "The graph needs ONNX Runtime 1.17 (opset 20), which Triton has from 24.03 on."


def _gpus(plan: Plan) -> str:
    return " --gpus=1" if plan.choice.device == "gpu" else ""


def _threads(plan: Plan) -> str:
    if plan.choice.device == "gpu":
        return ""
    return (
        f"\nIn a container with fewer cores than its machine, set `intra_op_thread_count` in\n`{plan.graph_model}/"
        "config.pbtxt` to their number: ONNX Runtime counts the machine's.\n"
        "With many cores, more instances (`count`) of both models with a share of the cores each answer more texts a "
        "second."
    )


def _positions(plan: Plan) -> str:
    if not plan.signature.selects_tokens:
        return ""
    return (
        ",\nand `positions`, int64 [masks]: row * tokens + place of each token whose logits are wanted; such requests "
        "are not joined"
    )
