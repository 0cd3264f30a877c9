"""What stands on the encoder, from config.json: the task, its labels, how outputs become answers."""

from __future__ import annotations

from dataclasses import dataclass

from mbexport.checkpoint.fields import Fields
from mbexport.errors import CheckpointError

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
POOLINGS = ("cls", "mean")  # of classifiers
MOST_LABELS = 2**20
# Architecture (as config.json names it) to task (as transformers' pipelines name it).
TASK_OF = {
    "ModernBertModel": "feature-extraction",
    "ModernBertForSequenceClassification": "text-classification",
    "ModernBertForTokenClassification": "token-classification",
    "ModernBertForQuestionAnswering": "question-answering",
    "ModernBertForMultipleChoice": "multiple-choice",
    "ModernBertForMaskedLM": "fill-mask",
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
class HeadSpec:
    """The prediction head (dense, activation, norm) and the layer that makes ``outputs`` of it.

    ``pooling`` says how a text's tokens become one vector, None where every token has
    outputs. ``score_function`` makes scores of logits: softmax, sigmoid or none. ``tied``:
    the last layer is the embedding matrix. ``last_bias``: the last layer has a bias.
    """

    task: str
    activation: str
    bias: bool
    outputs: int
    labels: tuple[str, ...] = ()
    pooling: str | None = None
    problem_type: str | None = None
    score_function: str = "softmax"
    tied: bool = False
    last_bias: bool = True

    @property
    def last_layer(self) -> str:
        """The last layer's name in the checkpoint."""
        return "decoder" if self.task == "fill-mask" else "classifier"


def parse_task(fields: Fields) -> str:
    """The task of a config.json's architecture.

    Raises:
        CheckpointError: another model type, or an architecture that is not supported.
    """
    if fields.raw("model_type") != "modernbert":
        raise fields.wrong("model_type", "'modernbert' (other architectures are not this tool's)")
    names = fields.raw("architectures")
    supported = ", ".join(TASK_OF)
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise fields.wrong("architectures", f"a list with one of {supported}")
    if names[0] not in TASK_OF:
        raise CheckpointError(f"config.json: architecture {names[0]!r:.80} is not supported; supported: {supported}")
    return TASK_OF[names[0]]


def parse_activation(fields: Fields, name: str) -> str:
    """The function that an activation's name stands for."""
    return ACTIVATIONS[fields.choice(name, "gelu", tuple(ACTIVATIONS))]


def parse_head(fields: Fields, task: str, rows: int | None, notes: list[str]) -> HeadSpec | None:
    """The head of a task; None for a bare encoder.

    Args:
        fields: config.json.
        task: as :func:`parse_task` gives it.
        rows: outputs that the classifier's weights have, where there are any; they decide
            where config.json names no labels.
        notes: gets a sentence for every guess.
    """
    if task == "feature-extraction":
        return None
    activation, bias = parse_activation(fields, "classifier_activation"), fields.flag("classifier_bias", False)
    if task == "fill-mask":
        tied = fields.flag("tie_word_embeddings", True)
        vocabulary, last_bias = fields.size("vocab_size", 50_368), fields.flag("decoder_bias", True)
        return HeadSpec(task, activation, bias, outputs=vocabulary, tied=tied, last_bias=last_bias)
    if task == "question-answering":
        return HeadSpec(task, activation, bias, outputs=2)  # a start and an end
    if task == "multiple-choice":
        pooling = fields.choice("classifier_pooling", "cls", POOLINGS)
        return HeadSpec(task, activation, bias, outputs=1, pooling=pooling)
    labels = _settle_labels(fields, rows, notes)
    if task == "token-classification":
        return HeadSpec(task, activation, bias, outputs=len(labels), labels=labels)
    problem_type = fields.raw("problem_type")
    if problem_type is not None and problem_type not in tuple(FUNCTION_OF):
        raise fields.wrong("problem_type", f"one of {', '.join(FUNCTION_OF)}")
    return HeadSpec(
        task,
        activation,
        bias,
        outputs=len(labels),
        labels=labels,
        pooling=fields.choice("classifier_pooling", "cls", POOLINGS),
        problem_type=problem_type,
        score_function=_score_function(fields, problem_type, len(labels), notes),
    )


def _settle_labels(fields: Fields, rows: int | None, notes: list[str]) -> tuple[str, ...]:
    """Labels in the order of the outputs: as config.json names them, else as many as there are rows."""
    labels = _labels(fields)
    count = len(labels or ())
    if not labels:
        count = fields.size("num_labels", largest=MOST_LABELS) if fields.has("num_labels") else rows or 2
    if labels and fields.has("num_labels") and fields.raw("num_labels") != count:
        raise fields.wrong("num_labels", f"{count}, as many as id2label holds")
    if rows not in (None, count):
        raise CheckpointError(
            f"config.json has {count} labels and classifier.weight {rows} rows; correct id2label in config.json"
        )
    if labels is None:
        if count > MOST_LABELS:  # as the shape of an empty tensor may say
            raise CheckpointError(f"classifier.weight has {count} rows, expected at most {MOST_LABELS}")
        labels = tuple(f"LABEL_{number}" for number in range(count))
        notes.append(f"config.json names no labels: the {count} outputs are called {', '.join(labels[:3])} ...")
    return labels


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
    except (TypeError, ValueError, OverflowError):  # a list, a word, infinity
        raise fields.wrong(name, expected) from None
    if not items or sorted(by_number) != list(range(len(items))):
        raise fields.wrong(name, expected)
    return tuple(by_number[number] for number in range(len(items)))


def _score_function(fields: Fields, problem_type: str | None, count: int, notes: list[str]) -> str:
    """As a sentence-transformers cross-encoder states it, else by problem_type."""
    section = fields.raw("sentence_transformers")
    stated = section.get("activation_fn") if isinstance(section, dict) else None
    stated = stated or fields.raw("sbert_ce_default_activation_function")  # the key until its version 4
    if stated is not None:
        if stated not in tuple(CROSS_ENCODER_FUNCTIONS):
            raise CheckpointError(
                f"config.json: the cross-encoder's activation_fn is {stated!r:.80}, "
                f"supported: {', '.join(CROSS_ENCODER_FUNCTIONS)}"
            )
        return CROSS_ENCODER_FUNCTIONS[stated]
    if problem_type is not None:
        return FUNCTION_OF[problem_type]
    # As transformers' text-classification pipeline decides.
    function = "sigmoid" if count == 1 else "softmax"
    notes.append(f"config.json has no problem_type: with {count} label(s), scores are made by {function}")
    return function
