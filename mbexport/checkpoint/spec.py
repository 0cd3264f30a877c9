"""config.json, of either generation, to a :class:`ModelSpec`; nothing unsupported passes.

Two generations exist. Until transformers 4: ``global_attn_every_n_layers``,
``global_rope_theta``, ``local_rope_theta``. Since transformers 5: ``layer_types`` and
``rope_parameters``, and the older keys are gone from what it saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mbexport.checkpoint.fields import Fields
from mbexport.checkpoint.rope_config import GLOBAL, LOCAL, RopeSpec, parse_ropes
from mbexport.errors import CheckpointError
from mbexport.manifest import POOLINGS

# Activation names of transformers' ACT2FN, and the function each stands for.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}
# Architecture (as config.json names it) to task (as transformers' pipelines name it).
TASK_OF = {
    "ModernBertModel": "feature-extraction",
    "ModernBertForSequenceClassification": "text-classification",
}
FUNCTION_OF = {
    "regression": "none",
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
}
CROSS_ENCODER_FUNCTIONS = {
    "torch.nn.modules.linear.Identity": "none",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.Softmax": "softmax",
}


@dataclass(frozen=True)
class ClassifierSpec:
    """The sequence-classification head: pooling, prediction head, one output a label.

    ``score_function`` makes scores of logits: softmax, sigmoid or none.
    """

    pooling: str
    activation: str
    bias: bool
    labels: tuple[str, ...]
    problem_type: str | None
    score_function: str


@dataclass(frozen=True)
class ModelSpec:
    """Everything that determines the mathematics of a ModernBERT.

    ``half_window`` is the reach of local attention to either side, itself not counted:
    token i attends to j where |i - j| <= half_window.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    max_positions: int
    layer_is_global: tuple[bool, ...]
    half_window: int
    global_rope: RopeSpec
    local_rope: RopeSpec
    activation: str
    norm_eps: float
    norm_bias: bool
    attention_bias: bool
    mlp_bias: bool
    classifier: ClassifierSpec | None

    @property
    def num_layers(self) -> int:
        """How many encoder layers there are."""
        return len(self.layer_is_global)

    @property
    def has_global(self) -> bool:
        """Whether any layer attends globally."""
        return any(self.layer_is_global)

    @property
    def has_local(self) -> bool:
        """Whether any layer attends locally."""
        return not all(self.layer_is_global)

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def task(self) -> str:
        """The task, as transformers' pipelines name it."""
        return "feature-extraction" if self.classifier is None else "text-classification"


def parse_task(config: dict[str, Any]) -> str:
    """The task of a config.json's architecture.

    Raises:
        CheckpointError: another model type, or an architecture that is not supported.
    """
    fields = Fields(config, "config.json")
    if config.get("model_type") != "modernbert":
        raise fields.wrong("model_type", "'modernbert' (other architectures are not this tool's)")
    names = fields.raw("architectures")
    supported = ", ".join(TASK_OF)
    if not isinstance(names, list) or len(names) != 1:
        raise fields.wrong("architectures", f"a list with one of {supported}")
    if names[0] not in TASK_OF:
        raise CheckpointError(f"config.json: architecture {names[0]!r:.80} is not supported; supported: {supported}")
    return TASK_OF[names[0]]


def parse_config(config: dict[str, Any], classifier_rows: int | None = None) -> tuple[ModelSpec, list[str]]:
    """The model that a config.json describes, and a sentence for every guess it took.

    Args:
        config: the parsed file.
        classifier_rows: outputs that the classifier's weights have, where there are any;
            they decide where config.json names no labels.

    Raises:
        CheckpointError: another model type or architecture, or a field (named) whose
            value is wrong or not supported.
    """
    task = parse_task(config)
    fields = Fields(config, "config.json")
    notes: list[str] = []
    _refuse_unsupported(fields)
    hidden, heads = fields.size("hidden_size", 768), fields.size("num_attention_heads", 12)
    if hidden % heads or (hidden // heads) % 2:
        raise fields.wrong("num_attention_heads", f"a divisor of hidden_size {hidden} that leaves an even head size")
    if fields.has("head_dim") and fields.raw("head_dim") != hidden // heads:
        raise fields.wrong("head_dim", f"hidden_size / num_attention_heads = {hidden // heads}")
    global_rope, local_rope = parse_ropes(config, notes)
    spec = ModelSpec(
        vocab_size=fields.size("vocab_size", 50_368),
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size", 1152),
        num_heads=heads,
        max_positions=fields.size("max_position_embeddings", 8192),
        layer_is_global=_layer_pattern(fields),
        half_window=_half_window(fields),
        global_rope=global_rope,
        local_rope=local_rope,
        activation=_activation(fields, "hidden_activation"),
        norm_eps=fields.number("norm_eps", 1e-5),
        norm_bias=fields.flag("norm_bias", False),
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        classifier=_classifier(fields, classifier_rows, notes) if task == "text-classification" else None,
    )
    return spec, notes


def _refuse_unsupported(fields: Fields) -> None:
    """Fields that other tools add and that would change what the model computes."""
    if fields.has("quantization_config"):
        raise fields.wrong("quantization_config", "none: export the unquantized checkpoint")
    for name in ("is_decoder", "is_causal", "add_cross_attention"):
        if fields.raw(name):
            raise fields.wrong(name, "false: ModernBERT is a bidirectional encoder")


def _layer_pattern(fields: Fields) -> tuple[bool, ...]:
    """Whether each layer attends globally."""
    if not fields.has("layer_types"):
        count, every = fields.size("num_hidden_layers", 22), fields.size("global_attn_every_n_layers", 3)
        return tuple(layer % every == 0 for layer in range(count))
    kinds = fields.raw("layer_types")
    if not isinstance(kinds, list) or not kinds or not all(kind in (GLOBAL, LOCAL) for kind in kinds):
        raise fields.wrong("layer_types", f"a list of {GLOBAL} and {LOCAL}")
    if fields.has("num_hidden_layers") and fields.size("num_hidden_layers") != len(kinds):
        raise fields.wrong("num_hidden_layers", f"{len(kinds)}, the length of layer_types")
    return tuple(kind == GLOBAL for kind in kinds)


def _half_window(fields: Fields) -> int:
    half = fields.size("local_attention", 128) // 2
    # transformers 5 exposes the half window as `sliding_window`, and saves it where it was set.
    if fields.has("sliding_window") and fields.raw("sliding_window") != half:
        raise fields.wrong("sliding_window", f"{half}, half of local_attention")
    return half


def _activation(fields: Fields, name: str) -> str:
    return ACTIVATIONS[fields.choice(name, "gelu", tuple(ACTIVATIONS))]


def _classifier(fields: Fields, rows: int | None, notes: list[str]) -> ClassifierSpec:
    problem_type = fields.raw("problem_type")
    if problem_type is not None and problem_type not in FUNCTION_OF:
        raise fields.wrong("problem_type", f"one of {', '.join(FUNCTION_OF)}")
    labels = _labels(fields)
    count = len(labels) if labels else (fields.size("num_labels") if fields.has("num_labels") else rows or 2)
    if labels and fields.has("num_labels") and fields.raw("num_labels") != count:
        raise fields.wrong("num_labels", f"{count}, as many as id2label holds")
    if rows not in (None, count):
        raise CheckpointError(
            f"config.json has {count} labels and classifier.weight {rows} rows; correct id2label in config.json"
        )
    if labels is None:
        labels = tuple(f"LABEL_{number}" for number in range(count))
        notes.append(f"config.json names no labels: the {count} outputs are called {', '.join(labels[:3])} ...")
    return ClassifierSpec(
        pooling=fields.choice("classifier_pooling", "cls", POOLINGS),
        activation=_activation(fields, "classifier_activation"),
        bias=fields.flag("classifier_bias", False),
        labels=labels,
        problem_type=problem_type,
        score_function=_score_function(fields, problem_type, count, notes),
    )


def _labels(fields: Fields) -> tuple[str, ...] | None:
    """Labels in the order of the outputs, from id2label, else from label2id."""
    if fields.has("id2label"):
        name, pairs = "id2label", fields.raw("id2label")
        items = list(pairs.items()) if isinstance(pairs, dict) else []
    elif fields.has("label2id"):
        name, pairs = "label2id", fields.raw("label2id")
        items = [(number, label) for label, number in pairs.items()] if isinstance(pairs, dict) else []
    else:
        return None
    expected = "an object that numbers the labels 0, 1, 2, ..."
    try:
        by_number = {int(number): str(label) for number, label in items}
    except (TypeError, ValueError):
        raise fields.wrong(name, expected) from None
    if not items or sorted(by_number) != list(range(len(items))):
        raise fields.wrong(name, expected)
    return tuple(by_number[number] for number in range(len(items)))


def _score_function(fields: Fields, problem_type: str | None, count: int, notes: list[str]) -> str:
    """softmax, sigmoid or none: as a sentence-transformers cross-encoder states it, else by problem_type."""
    section = fields.raw("sentence_transformers")
    if isinstance(section, dict) and "activation_fn" in section:
        name = section["activation_fn"]
        if name not in CROSS_ENCODER_FUNCTIONS:
            raise CheckpointError(
                f"config.json: sentence_transformers.activation_fn is {name!r:.80}, "
                f"supported: {', '.join(CROSS_ENCODER_FUNCTIONS)}"
            )
        return CROSS_ENCODER_FUNCTIONS[name]
    if problem_type is not None:
        return FUNCTION_OF[problem_type]
    # As transformers' text-classification pipeline decides.
    function = "sigmoid" if count == 1 else "softmax"
    notes.append(f"config.json has no problem_type: with {count} label(s), scores are made by {function}")
    return function
