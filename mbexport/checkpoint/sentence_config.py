"""sentence-transformers pipelines: modules.json and what its folders hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbexport.checkpoint.fields import Fields
from mbexport.errors import CheckpointError
from mbexport.files import is_plain_name, read_json, read_json_value

MODULES, SETTINGS, TRANSFORMER_SETTINGS = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
MOST_MODULES = 64
# Names in a bundle that are no module's folder.
TAKEN = ("onnx", "engines", "reports", "prepacked")
TOKENS, SENTENCE = "token_embeddings", "sentence_embedding"
# What sentence-transformers calls a pooling (since its version 6, and before), and what we do.
POOLING_OF = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
DENSE_ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}


@dataclass(frozen=True)
class DenseSpec:
    """A linear layer and an activation on each token's vector or on the sentence's."""

    folder: str
    on: str
    inputs: int
    outputs: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class NormalizeSpec:
    """Division by the Euclidean norm, of each token's vector or the sentence's."""

    on: str


@dataclass(frozen=True)
class SentenceSpec:
    """What follows the encoder, in order; ``pooling`` stands between token and sentence steps.

    ``pooling`` None: vectors of tokens only, as late-interaction models have them.
    """

    pooling: str | None
    steps: tuple[DenseSpec | NormalizeSpec, ...]
    folders: tuple[str, ...]
    prompts: tuple[tuple[str, str], ...]
    default_prompt: str | None
    truncate_dim: int | None
    max_length: int | None

    @property
    def normalized(self) -> bool:
        """Whether the last step is a normalization."""
        return bool(self.steps) and isinstance(self.steps[-1], NormalizeSpec)

    def width(self, hidden: int, on: str) -> int:
        """Size of a token's or a sentence's vector at the end."""
        for step in self.steps:
            if isinstance(step, DenseSpec) and step.on in (TOKENS, on):
                hidden = step.outputs
        return hidden


def read_modules(directory: Path) -> list[dict[str, str]] | None:
    """The modules after the transformer that a directory's modules.json lists, None where it lists none.

    Raises:
        CheckpointError: modules.json is damaged, or has the transformer elsewhere.
    """
    path = directory / MODULES
    modules = read_json_value(path, CheckpointError)
    entries = modules if isinstance(modules, list) and len(modules) <= MOST_MODULES else []
    if not entries or not all(isinstance(m, dict) and isinstance(m.get("type"), str) for m in entries):
        raise CheckpointError(f"{path} is no list of modules, {MOST_MODULES} at most; save the model again")
    if _kind(entries[0]) != "Transformer" or entries[0].get("path"):
        raise CheckpointError(
            f"{path}: the first module is {entries[0]['type']:.80} in {entries[0].get('path')!r:.80}, expected a "
            "Transformer in the directory itself; load and save the model with a current sentence-transformers"
        )
    return entries[1:] or None


def parse_sentence(directory: Path, modules: list[dict[str, str]], hidden: int) -> SentenceSpec:
    """The pipeline after the encoder.

    Args:
        directory: the checkpoint.
        modules: as :func:`read_modules` gives them.
        hidden: size of the encoder's vectors.

    Raises:
        CheckpointError: a module or a setting (named) that is not supported.
    """
    pooling: str | None = None
    steps: list[DenseSpec | NormalizeSpec] = []
    width = hidden
    for module in modules:
        kind, folder = _kind(module), module.get("path")
        if not isinstance(folder, str) or not is_plain_name(folder) or "." in folder or folder.lower() in TAKEN:
            raise CheckpointError(
                f"{directory / MODULES} names the folder {folder!r:.80}, which lies elsewhere or is none, expected one "
                "of the checkpoint's own, such as 1_Pooling"
            )
        on = SENTENCE if pooling else TOKENS
        if kind == "Pooling" and pooling is None:
            pooling = _parse_pooling(directory / folder)
        elif kind == "Dense":
            dense = _parse_dense(directory, folder, on, width)
            steps.append(dense)
            width = dense.outputs
        elif kind == "Normalize":
            steps.append(NormalizeSpec(on))
        else:
            raise CheckpointError(
                f"{directory / MODULES}: the module {module['type']:.80} is not supported here; "
                "supported: one Pooling, Dense, Normalize"
            )
    return _with_settings(directory, pooling, tuple(steps), tuple(module["path"] for module in modules))


def with_cross_encoder(config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """config.json with the activation that a cross-encoder states in sentence-transformers' own file.

    sentence-transformers wrote it into config.json until its version 5.

    Raises:
        CheckpointError: the cross-encoder puts a prompt before every text.
    """
    if settings.get("model_type") != "CrossEncoder":
        return config
    if settings.get("default_prompt_name"):
        raise Fields(settings, SETTINGS).wrong(
            "default_prompt_name", "null: prompts of cross-encoders are not supported"
        )
    function = settings.get("activation_fn")
    return config | {"sentence_transformers": {"activation_fn": function}} if function else config


def _kind(module: dict[str, str]) -> str:
    return module["type"].rsplit(".", 1)[-1]


def _parse_pooling(folder: Path) -> str:
    config = read_json(folder / "config.json", CheckpointError)
    fields = Fields(config, f"{folder.name}/config.json")
    if not fields.flag("include_prompt", True):
        raise fields.wrong("include_prompt", "true")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in POOLING_FLAGS.items() if config.get(flag)]
    if isinstance(modes, list) and len(modes) == 1:
        modes = modes[0]
    if not isinstance(modes, str) or modes not in POOLING_OF:
        raise CheckpointError(
            f"{folder.name}/config.json: pooling {modes!r:.120} is not supported; "
            f"supported: one of {', '.join(POOLING_OF)}"
        )
    return POOLING_OF[modes]


def _parse_dense(directory: Path, folder: str, on: str, width: int) -> DenseSpec:
    config = read_json(directory / folder / "config.json", CheckpointError)
    fields = Fields(config, f"{folder}/config.json")
    if config.get("use_residual"):
        raise fields.wrong("use_residual", "false")
    for name in ("module_input_name", "module_output_name"):
        if config.get(name) not in (None, on):
            raise fields.wrong(name, repr(on))
    if fields.size("in_features") != width:
        raise fields.wrong("in_features", f"{width}, what comes before it gives")
    activation = fields.choice("activation_function", "torch.nn.modules.activation.Tanh", tuple(DENSE_ACTIVATIONS))
    return DenseSpec(
        folder, on, width, fields.size("out_features"), fields.flag("bias", True), DENSE_ACTIVATIONS[activation]
    )


def _with_settings(
    directory: Path, pooling: str | None, steps: tuple[DenseSpec | NormalizeSpec, ...], folders: tuple[str, ...]
) -> SentenceSpec:
    def optional(name: str) -> dict[str, Any]:
        return read_json(directory / name, CheckpointError) if (directory / name).is_file() else {}

    settings, transformer = optional(SETTINGS), optional(TRANSFORMER_SETTINGS)
    fields, transformer_fields = Fields(settings, SETTINGS), Fields(transformer, TRANSFORMER_SETTINGS)
    if transformer.get("do_lower_case"):
        raise transformer_fields.wrong("do_lower_case", "false; let the tokenizer's normalizer do it")
    if transformer.get("config_args"):
        raise transformer_fields.wrong("config_args", "none; write them into config.json")
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise fields.wrong("prompts", "an object of texts")
    default = settings.get("default_prompt_name")
    if default is not None and default not in tuple(prompts):
        raise fields.wrong("default_prompt_name", f"one of {', '.join(prompts) or 'no prompts'}")
    return SentenceSpec(
        pooling=pooling,
        steps=steps,
        folders=folders,
        prompts=tuple(prompts.items()),
        default_prompt=default,
        truncate_dim=fields.size("truncate_dim") if fields.has("truncate_dim") else None,
        max_length=transformer_fields.size("max_seq_length") if transformer_fields.has("max_seq_length") else None,
    )
