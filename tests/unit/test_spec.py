from __future__ import annotations

from typing import Any

import pytest

from mbexport.checkpoint.rope_config import RopeSpec
from mbexport.checkpoint.spec import parse_config
from mbexport.errors import CheckpointError

HUB: dict[str, Any] = {  # the fields of the base model on the hub, with a classifier
    "model_type": "modernbert",
    "architectures": ["ModernBertForSequenceClassification"],
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "local_attention": 128,
    "layer_norm_eps": 1e-05,
    "position_embedding_type": "absolute",
    "num_hidden_layers": 22,
}


def parse(rows: int | None = 2, **changes: Any) -> Any:
    return parse_config(HUB | changes, rows)[0]


def notes(rows: int | None = 2, **changes: Any) -> list[str]:
    return parse_config(HUB | changes, rows)[1]


def test_first_generation() -> None:
    spec = parse()
    assert [n for n, is_global in enumerate(spec.layer_is_global) if is_global] == [0, 3, 6, 9, 12, 15, 18, 21]
    assert (spec.half_window, spec.global_rope, spec.local_rope) == (64, RopeSpec(160_000.0), RopeSpec(10_000.0))
    assert (spec.hidden_size, spec.head_dim, spec.max_positions) == (768, 64, 8192)


def test_second_generation() -> None:
    spec = parse(
        layer_types=["sliding_attention", "full_attention"],
        num_hidden_layers=2,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 5.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 7.0},
        },
    )
    assert spec.layer_is_global == (False, True)
    assert (spec.global_rope.theta, spec.local_rope.theta) == (5.0, 7.0)


def test_rope_parameters_of_one_kind_leave_the_other_at_its_older_key() -> None:
    spec = parse(rope_parameters={"full_attention": {"rope_theta": 5.0}}, local_rope_theta=9.0)
    assert (spec.global_rope.theta, spec.local_rope.theta) == (5.0, 9.0)


def test_null_local_theta_is_the_global_one_and_is_said() -> None:
    assert parse(local_rope_theta=None).local_rope.theta == 160_000.0
    assert any("local_rope_theta" in note for note in notes(local_rope_theta=None))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"model_type": "bert"}, "model_type is 'bert'"),
    "no architecture": ({"architectures": None}, "architectures is None"),
    "a head not supported": (
        {"architectures": ["ModernBertForCausalLM"]},
        "supported: ModernBertModel, ModernBertForSequenceClassification",
    ),
    "a size that is no number": ({"hidden_size": "768"}, "hidden_size is '768'"),
    "a size below one": ({"vocab_size": 0}, "vocab_size is 0"),
    "an absurd size": ({"vocab_size": 2**40}, "vocab_size"),
    "a boolean as a size": ({"num_hidden_layers": True}, "num_hidden_layers is True"),
    "heads that do not divide": ({"num_attention_heads": 7}, "num_attention_heads is 7"),
    "an odd head size": ({"hidden_size": 36, "num_attention_heads": 12}, "even head size"),
    "a head size of its own": ({"head_dim": 32}, "head_dim is 32"),
    "an unknown layer type": ({"layer_types": ["chunked_attention"] * 22}, "layer_types"),
    "too few layer types": ({"layer_types": ["full_attention"]}, "num_hidden_layers is 22"),
    "a window of its own": ({"sliding_window": 100}, "sliding_window is 100"),
    "an activation": ({"hidden_activation": "xielu"}, "hidden_activation is 'xielu'"),
    "an activation in the head": ({"classifier_activation": 3}, "classifier_activation is 3"),
    "a pooling": ({"classifier_pooling": "max"}, "classifier_pooling is 'max'"),
    "an epsilon of zero": ({"norm_eps": 0}, "norm_eps is 0"),
    "a flag that is a text": ({"norm_bias": "false"}, "norm_bias is 'false'"),
    "rope scaling": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 4}},
        "rope_scaling.full_attention: rope_type is 'llama3', expected one of default, linear, dynamic, yarn",
    ),
    "the older name of a rope type": (
        {"rope_scaling": {"type": "yarn", "factor": 4}},
        "rope_type in the place of type",
    ),
    "rope scaling that is no object": ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
    "linear scaling without a factor": ({"rope_scaling": {"rope_type": "linear"}}, "factor is None"),
    "part of the channels": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor is 0.5",
    ),
    "a rope type": (
        {"rope_parameters": {"full_attention": {"rope_type": "longrope"}}},
        "rope_parameters.full_attention: rope_type is 'longrope'",
    ),
    "rope parameters without kinds": ({"rope_parameters": {"rope_theta": 1.0}}, "rope_parameters"),
    "a theta of zero": ({"rope_parameters": {"full_attention": {"rope_theta": 0}}}, "rope_theta is 0"),
    "a quantized checkpoint": ({"quantization_config": {"bits": 4}}, "quantization_config"),
    "a decoder": ({"is_decoder": True}, "is_decoder is True"),
    "a problem type": ({"problem_type": "ranking"}, "problem_type is 'ranking'"),
    "labels that skip a number": ({"id2label": {"0": "a", "2": "b"}}, "id2label"),
    "labels that are a list": ({"id2label": ["a", "b"]}, "id2label"),
    "num_labels against id2label": ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, "num_labels is 3"),
    "labels against the weights": ({"id2label": {"0": "a"}}, "1 labels and classifier.weight 2 rows"),
    "a problem type that is a list": ({"problem_type": ["regression"]}, "problem_type is ['regression']"),
    "an architecture that is a list": ({"architectures": [["x"]]}, "architectures is [['x']]"),
    "a function that is a list": ({"sentence_transformers": {"activation_fn": ["x"]}}, "activation_fn is ['x']"),
    "a cross-encoder's function": (
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}},
        "activation_fn",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(CheckpointError) as raised:
        parse(**changes)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("pairs", [{"1": "b", "0": "a"}, {1: "b", 0: "a"}])
def test_labels_in_the_order_of_their_numbers(pairs: dict[Any, str]) -> None:
    assert parse(id2label=pairs).head.labels == ("a", "b")


def test_labels_that_are_numbers_become_texts() -> None:
    assert parse(id2label={"0": 1, "1": 5}).head.labels == ("1", "5")


def test_labels_from_label2id() -> None:
    assert parse(label2id={"b": "1", "a": 0}).head.labels == ("a", "b")


def test_missing_labels_are_counted_from_the_weights_and_said() -> None:
    assert parse(rows=5).head.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3", "LABEL_4")
    assert any("names no labels" in note for note in notes(rows=5))


SCORES: list[tuple[dict[str, Any], int, str, bool]] = [
    ({}, 3, "softmax", True),
    ({}, 1, "sigmoid", True),
    ({"problem_type": "single_label_classification"}, 3, "softmax", False),
    ({"problem_type": "multi_label_classification"}, 3, "sigmoid", False),
    ({"problem_type": "regression"}, 1, "none", False),
    ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, 1, "none", False),
]


@pytest.mark.parametrize(("changes", "rows", "function", "guessed"), SCORES)
def test_score_function(changes: dict[str, Any], rows: int, function: str, guessed: bool) -> None:
    assert parse(rows=rows, **changes).head.score_function == function
    assert any("no problem_type" in note for note in notes(rows=rows, **changes)) == guessed
