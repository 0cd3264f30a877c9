"""``config.pbtxt``: Triton's settings of the two models, in protobuf's text format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from mbexport.manifest import Manifest
from mbexport.packaging.choose import Choice
from mbexport.packaging.signature import Signature, Tensor
from mbexport.profiles import Profile, parse_profiles
from mbexport.runtime.schedule import TOKEN_BUDGET

MOST_TEXTS = 64  # of one request, and of what Triton joins
MOST_WAITING = 512  # requests; further ones are refused at once
LONGEST_WAIT = 30_000_000  # microseconds in a queue; then a request is refused
FILL_DELAY = 1_000  # microseconds that a GPU's batch may wait to fill; on a CPU a batch buys little
OUTPUT_BYTES = 64 * 2**20  # of one run, where outputs are per token: they pass through shared memory
BYTES_PER_TOKEN = 250  # of the longest text; real ones have 3 to 6, and what is longer than max_length is cut
WARM_SHAPES = ((1, 16), (1, 128), (8, 128))  # texts x tokens
INSTANCES = 2  # one tokenizes while the other waits for the graph


class Word(str):
    """A value that stands without quotes: an enum's."""

    __slots__ = ()


@dataclass(frozen=True)
class Plan:
    """How the two models of a repository are set up.

    Attributes:
        name: of the model that takes texts.
        manifest: the bundle's.
        choice: what the other model runs.
        signature: of that.
    """

    name: str
    manifest: Manifest
    choice: Choice
    signature: Signature

    @property
    def graph_model(self) -> str:
        """Name of the model that takes token ids."""
        return f"{self.name}_model"

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """Shapes that an engine takes; none of a graph, which takes any."""
        return parse_profiles(self.choice.engine.profile) if self.choice.engine else ()

    @property
    def most_texts(self) -> int:
        """Texts of one run at most."""
        return max((profile.largest[0] for profile in self.profiles), default=MOST_TEXTS)

    @property
    def batches(self) -> bool:
        """Whether Triton may join requests for token ids.

        Not where an input has no batch axis, nor for profiles that end at different batches: Triton's
        TensorRT backend wants its largest batch to lie within each of them.
        """
        return not self.signature.selects_tokens and len({profile.largest[0] for profile in self.profiles}) < 2

    @property
    def most_tokens(self) -> int:
        """Tokens of one run of several texts at most."""
        return max(1, min(TOKEN_BUDGET, OUTPUT_BYTES // (4 * max(1, self._token_width))))

    @property
    def shared_memory(self) -> int:
        """GiB of shared memory: twice the outputs of the longest text, which runs alone, and one for the rest."""
        longest = max((profile.largest[1] for profile in self.profiles), default=self.manifest.max_length)
        return 1 + 2 * 4 * self._token_width * min(longest, self.manifest.max_length) // 2**30

    @property
    def _token_width(self) -> int:
        """Numbers that a token has in the outputs that are asked for."""
        wanted = self.manifest.answer_outputs or self.signature.per_token
        return sum(tensor.width for tensor in self.signature.outputs if tensor.per_token and tensor.name in wanted)


def text_config(plan: Plan) -> str:
    """Settings of the model that takes texts.

    It has no warm-up of its own: that would call the other model, which Triton may load after it.
    """
    settings = {
        "graph_model": plan.graph_model,
        "outputs": ",".join(tensor.name for tensor in plan.signature.outputs),
        "per_token": ",".join(plan.signature.per_token),
        "selects_tokens": "yes" if plan.signature.selects_tokens else "no",
        "device": plan.choice.device,
        "most_texts": str(plan.most_texts),
        "most_tokens": str(plan.most_tokens),
        "most_bytes": str(BYTES_PER_TOKEN * plan.manifest.max_length),
    }
    inputs, outputs = text_tensors(plan)
    return text_format({
        "backend": "python",
        "max_batch_size": MOST_TEXTS,
        "input": inputs,
        "output": outputs,
        "dynamic_batching": _batching(0 if plan.choice.device == "cpu" else FILL_DELAY),
        "instance_group": [{"kind": Word("KIND_CPU"), "count": INSTANCES}],
        "parameters": [{"key": key, "value": {"string_value": value}} for key, value in settings.items()],
    })  # fmt: skip


def text_tensors(plan: Plan) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs of the model that takes texts, without their batch axis, by the bundle's task."""
    manifest, one = plan.manifest, [1]
    inputs: list[dict[str, Any]] = [{"name": "TEXT", "data_type": Word("TYPE_STRING"), "dims": one}]
    second: dict[str, Any] = {"name": "PAIR", "data_type": Word("TYPE_STRING"), "dims": one}
    if manifest.task == "question-answering":
        inputs.append(second)
    elif manifest.task == "text-classification":
        inputs.append(second | {"optional": True})
    elif manifest.task == "multiple-choice":
        inputs.append(second | {"name": "CHOICES", "dims": [-1], "allow_ragged_batch": True})
    if manifest.task != "feature-extraction":
        return inputs, [{"name": "ANSWER", "data_type": Word("TYPE_STRING"), "dims": one}]
    if manifest.pooling is not None:
        return inputs, [{"name": "EMBEDDING", "data_type": Word("TYPE_FP32"), "dims": [-1]}]
    return inputs, [
        {"name": "TOKEN_EMBEDDINGS", "data_type": Word("TYPE_FP32"), "dims": [-1, -1]},
        {"name": "TOKENS", "data_type": Word("TYPE_INT32"), "dims": one},
    ]


def graph_config(plan: Plan) -> str:
    """Settings of the model that takes token ids: ONNX Runtime's, or an engine's."""
    choice = plan.choice
    group: dict[str, Any] = {"kind": Word(f"KIND_{choice.device.upper()}"), "count": 1}
    message: dict[str, Any]
    if choice.engine:
        message = {"backend": "tensorrt", "default_model_filename": "model.plan"}
        group["profile"] = [str(number) for number in range(len(plan.profiles))]
    else:
        message = {"backend": "onnxruntime", "default_model_filename": PurePosixPath(choice.graph.file).name}
        if choice.graph.fused:  # 2: as it is written; it gains nothing by ONNX Runtime's optimizations
            message["optimization"] = {"graph": {"level": 2}}
        if choice.device == "cpu":  # 0: as many threads as the machine has cores
            message["parameters"] = [{"key": "intra_op_thread_count", "value": {"string_value": "0"}}]
    message |= {
        "max_batch_size": plan.most_texts if plan.batches else 0,
        "input": [_declared(tensor, plan) for tensor in plan.signature.inputs],
        "output": [_declared(tensor, plan) for tensor in plan.signature.outputs],
        "instance_group": [group],
        "model_warmup": [_warm_up(plan, *shape) for shape in warm_shapes(plan)],
    }
    if plan.batches:
        message["dynamic_batching"] = _batching(0)
    return text_format(message)


def warm_shapes(plan: Plan) -> list[tuple[int, int]]:
    """Texts and tokens of each run that comes before a model is ready: usual ones, and what profiles are made for."""
    if not plan.profiles:
        return [(texts, min(tokens, plan.manifest.max_length)) for texts, tokens in WARM_SHAPES]
    shapes = [*WARM_SHAPES, *(profile.fastest for profile in plan.profiles)]
    return [shape for shape in dict.fromkeys(shapes) if any(profile.accepts(*shape) for profile in plan.profiles)]


def warm_up_file(texts: int, tokens: int, plan: Plan) -> tuple[str, int]:
    """The file of ones that a warm-up run takes for its mask, and how many it holds."""
    count = tokens if plan.batches else texts * tokens  # of a batch Triton repeats what one text has
    return f"ones_{count}", count


def _warm_up(plan: Plan, texts: int, tokens: int) -> dict[str, Any]:
    dims = [tokens] if plan.batches else [texts, tokens]
    file, _ = warm_up_file(texts, tokens, plan)
    given: dict[str, dict[str, Any]] = {
        "input_ids": {"dims": dims, "zero_data": True},
        "attention_mask": {"dims": dims, "input_data_file": file},
        "positions": {"dims": [1], "zero_data": True},
    }
    return {
        "name": f"{texts}x{tokens}",
        "batch_size": texts if plan.batches else 0,
        "inputs": [
            {"key": tensor.name, "value": {"data_type": Word(tensor.data_type), **given[tensor.name]}}
            for tensor in plan.signature.inputs
        ],
    }


def _declared(tensor: Tensor, plan: Plan) -> dict[str, Any]:
    """A tensor as Triton wants it: without its batch axis where it joins requests, -1 for what varies."""
    shape = tensor.shape[1:] if plan.batches else tensor.shape
    dims = [size if isinstance(size, int) else -1 for size in shape]
    return {"name": tensor.name, "data_type": Word(tensor.data_type), "dims": dims}


def _batching(delay: int) -> dict[str, Any]:
    return {
        "max_queue_delay_microseconds": delay,
        "default_queue_policy": {
            "timeout_action": Word("REJECT"),
            "default_timeout_microseconds": LONGEST_WAIT,
            "allow_timeout_override": True,
            "max_queue_size": MOST_WAITING,
        },
    }


def text_format(message: Mapping[str, Any], indent: str = "") -> str:
    """A protobuf message as text: mappings are messages, lists repeat their field, unless of numbers or texts."""
    lines = []
    for name, value in message.items():
        parts = value if isinstance(value, list) and value and isinstance(value[0], Mapping) else [value]
        for part in parts:
            if isinstance(part, Mapping):
                lines.append(f"{indent}{name} {{\n{text_format(part, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(part)}\n")
    return "".join(lines)


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    return str(value) if isinstance(value, Word) else json.dumps(value)
