"""config.json, of either generation, to a :class:`ModelSpec`; nothing unsupported passes.

Two generations exist. Until transformers 4: ``global_attn_every_n_layers``,
``global_rope_theta``, ``local_rope_theta``. Since transformers 5: ``layer_types`` and
``rope_parameters``, and the older keys are gone from what it saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mbexport.checkpoint.fields import Fields
from mbexport.checkpoint.head_config import HeadSpec, parse_activation, parse_head, parse_task
from mbexport.checkpoint.rope_config import GLOBAL, LOCAL, RopeSpec, parse_ropes
from mbexport.checkpoint.sentence_config import SentenceSpec
from mbexport.options import DEFAULT_VOCABULARY

MOST_LAYERS = 1024
MOST_ANGLES = 2**25  # in a table of cosines or sines: 2**20 positions of heads with 64 channels, 128 MiB


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
    head: HeadSpec | None
    sentence: SentenceSpec | None = None

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
        return "feature-extraction" if self.head is None else self.head.task


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
    fields = Fields(config, "config.json")
    notes: list[str] = []
    task = parse_task(fields)
    _refuse_unsupported(fields)
    hidden, heads = fields.size("hidden_size", 768), fields.size("num_attention_heads", 12)
    if hidden % heads or (hidden // heads) % 2:
        raise fields.wrong("num_attention_heads", f"a divisor of hidden_size {hidden} that leaves an even head size")
    if fields.has("head_dim") and fields.raw("head_dim") != hidden // heads:
        raise fields.wrong("head_dim", f"hidden_size / num_attention_heads = {hidden // heads}")
    positions, most = fields.size("max_position_embeddings", 8192), 2 * MOST_ANGLES * heads // hidden
    if positions > most:
        raise fields.wrong("max_position_embeddings", f"at most {most} for heads of {hidden // heads} channels")
    global_rope, local_rope = parse_ropes(config, notes)
    spec = ModelSpec(
        vocab_size=fields.size("vocab_size", DEFAULT_VOCABULARY),
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size", 1152),
        num_heads=heads,
        max_positions=positions,
        layer_is_global=_layer_pattern(fields),
        half_window=_half_window(fields),
        global_rope=global_rope,
        local_rope=local_rope,
        activation=parse_activation(fields, "hidden_activation"),
        norm_eps=fields.number("norm_eps", 1e-5),
        norm_bias=fields.flag("norm_bias", False),
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        head=parse_head(fields, task, classifier_rows, notes),
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
        count = fields.size("num_hidden_layers", 22, MOST_LAYERS)
        every = fields.size("global_attn_every_n_layers", 3)
        return tuple(layer % every == 0 for layer in range(count))
    kinds = fields.raw("layer_types")
    fits = isinstance(kinds, list) and 1 <= len(kinds) <= MOST_LAYERS
    if not fits or not all(kind in (GLOBAL, LOCAL) for kind in kinds):
        raise fields.wrong("layer_types", f"a list of {GLOBAL} and {LOCAL}, at most {MOST_LAYERS}")
    if fields.has("num_hidden_layers") and fields.size("num_hidden_layers") != len(kinds):
        raise fields.wrong("num_hidden_layers", f"{len(kinds)}, the length of layer_types")
    return tuple(kind == GLOBAL for kind in kinds)


def _half_window(fields: Fields) -> int:
    half = fields.size("local_attention", 128) // 2
    # transformers 5 exposes the half window as `sliding_window`, and saves it where it was set.
    if fields.has("sliding_window") and fields.raw("sliding_window") != half:
        raise fields.wrong("sliding_window", f"{half}, half of local_attention")
    return half
