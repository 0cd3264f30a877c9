"""LoRA adapters saved by PEFT, merged into their base model's weights in float32."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mbexport.checkpoint.fields import Fields
from mbexport.checkpoint.weights import FloatArray, Weights, is_finite, read_tensors
from mbexport.errors import CheckpointError
from mbexport.files import read_json

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
ARCHITECTURE_OF = {
    "SEQ_CLS": "ModernBertForSequenceClassification",
    "TOKEN_CLS": "ModernBertForTokenClassification",
    "QUESTION_ANS": "ModernBertForQuestionAnswering",
    "FEATURE_EXTRACTION": "ModernBertModel",
}
# Fields that make of the two low-rank matrices something else than B @ A * scale.
UNSUPPORTED = (
    "use_dora", "fan_in_fan_out", "lora_bias", "layer_replication", "alora_invocation_tokens", "target_parameters",
    "trainable_token_indices", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
    "velora_config",
)  # fmt: skip
# Initialisations that leave the base model's weights as they are.
PLAIN_INITIALISATIONS = (None, True, False, "gaussian", "eva", "orthogonal")
LABEL_FIELDS = ("id2label", "label2id", "num_labels")
LARGEST_ALPHA = 1e30
# The time of Python's re grows exponentially with repetitions of groups and with the number of choices.
UNBOUNDED = re.compile(r"\)[*+?{]|(?:[*+?{|][^*+?{|]*){3}")
MOST_PATTERNS, LONGEST_PATH = 128, 80
FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True)
class Adapter:
    """An adapter directory: its settings and where its base model is."""

    directory: Path
    base: Path
    settings: dict[str, Any]


def is_adapter(directory: Path) -> bool:
    """Whether a directory was saved by PEFT."""
    return (directory / CONFIG).is_file()


def read_adapter(directory: Path, base: Path | None) -> Adapter:
    """An adapter's settings, every kind that cannot be merged exactly refused.

    Args:
        directory: what PEFT saved.
        base: the base model's directory; None takes the one that the adapter names.

    Raises:
        CheckpointError: another kind of adapter, or a base model that is not here.
    """
    settings = read_json(directory / CONFIG, CheckpointError)
    fields = Fields(settings, CONFIG)
    if settings.get("peft_type") != "LORA":
        raise fields.wrong("peft_type", "'LORA', the supported kind")
    if settings.get("bias", "none") != "none":
        raise fields.wrong("bias", "'none'")
    for name in UNSUPPORTED:
        if settings.get(name):
            raise fields.wrong(name, "none: merge the adapter with PEFT's merge_and_unload and save the result")
    if settings.get("init_lora_weights") not in PLAIN_INITIALISATIONS:
        raise fields.wrong("init_lora_weights", "one that leaves the base model's weights as they are")
    if base is None:
        named = settings.get("base_model_name_or_path")
        candidates = [Path(str(named)), directory / str(named)] if named else []
        base = next((path for path in candidates if _holds_model(path)), None)
    if base is None or not _holds_model(base):
        named = base or settings.get("base_model_name_or_path")
        raise CheckpointError(
            f"{directory} is an adapter of {str(named)!r:.200}, which is no directory here; give it: --base"
        )
    return Adapter(directory, base, settings)


def _holds_model(directory: Path) -> bool:
    return os.path.isfile(directory / "config.json")  # noqa: PTH113 (False, not an error, for a name too long)


def adapted_config(adapter: Adapter, base_config: dict[str, Any], classifier_rows: int | None) -> dict[str, Any]:
    """The config.json of the merged model: the adapter's own, else the base's, with the adapter's task.

    Labels of the base are left out where the adapter's classifier has another number of them.
    """
    config = base_config
    if (adapter.directory / "config.json").is_file():
        config = read_json(adapter.directory / "config.json", CheckpointError)
    task = adapter.settings.get("task_type")
    if task is None:
        return config
    if task not in tuple(ARCHITECTURE_OF):
        raise Fields(adapter.settings, CONFIG).wrong("task_type", f"one of {', '.join(ARCHITECTURE_OF)}")
    config = config | {"architectures": [ARCHITECTURE_OF[task]]}
    labels = config.get("id2label") or {}  # of another type: refused where labels are read
    if classifier_rows is not None and isinstance(labels, dict) and len(labels) != classifier_rows:
        config = {name: value for name, value in config.items() if name not in LABEL_FIELDS}
    return config


class MergedWeights(Weights):
    """The base model's tensors with an adapter's changes in them.

    Raises:
        CheckpointError: a tensor of the adapter that does not fit the base.
    """

    def __init__(self, adapter: Adapter) -> None:
        super().__init__(adapter.base)
        self._adapter_file = adapter.directory / TENSORS
        if not self._adapter_file.is_file():
            raise CheckpointError(f"{self._adapter_file} is missing; save the adapter with save_pretrained")
        self.further_files.append(self._adapter_file)
        self._deltas: dict[str, FloatArray] = {}
        factors: dict[str, dict[str, FloatArray]] = {}
        for name, array in read_tensors(self._adapter_file).items():
            match = FACTOR.fullmatch(name.removeprefix("base_model.model."))
            if match:
                factors.setdefault(match[1], {})[match[2]] = array
            else:
                self._give_module(name.removeprefix("base_model.model."), array)
        for module, pair in factors.items():
            name = self._target(module)
            self._deltas[name] = _delta(module, pair, adapter.settings, self.shape(name) or (), self._adapter_file)
        self.notes.append(f"adapter of {len(self._deltas)} matrices merged into {adapter.base.name}")

    def _target(self, module: str) -> str:
        name = self.canonical(f"{module}.weight")
        if self.shape(name) is None:
            raise CheckpointError(f"{self._adapter_file} changes {name:.120}, which the base model does not have")
        return name

    def _give_module(self, name: str, array: FloatArray) -> None:
        if "lora_" in name or not name.endswith((".weight", ".bias")):
            raise CheckpointError(
                f"{self._adapter_file} holds {name:.120}, which is neither lora_A, lora_B nor a saved module"
            )
        self.give(self.canonical(name), array)

    def read(self, names: list[str]) -> Iterator[tuple[str, FloatArray]]:
        """The named tensors of the merged model as float32, one at a time.

        Raises:
            CheckpointError: a tensor holds NaN or infinity, or does so once it is merged.
        """
        for name, array in super().read(names):
            yield name, self._merged(name, array) if name in self._deltas else array

    def _merged(self, name: str, array: FloatArray) -> FloatArray:
        with np.errstate(over="ignore", invalid="ignore"):
            merged = array + self._deltas[name]
        if not is_finite(merged):
            raise CheckpointError(
                f"{self._adapter_file}: {name} overflows when its change is added, which B @ A times lora_alpha / r "
                f"makes; the adapter is damaged, or lora_alpha in {CONFIG} is not what it was trained with"
            )
        return merged

    def keep_only(self, names: set[str]) -> None:
        """Forget the base's tensors that the adapter's task does not use, such as another head's.

        Raises:
            CheckpointError: the adapter itself brings or changes one of them.
        """
        lost = sorted((set(self._given) | set(self._deltas)) - names)
        if lost:
            raise CheckpointError(
                f"{self._adapter_file} brings {', '.join(lost[:3])}, which the model's task does not use; "
                f"correct task_type in {CONFIG}: {', '.join(ARCHITECTURE_OF)}"
            )
        for name in set(self.names()) - names:
            self.forget(name)


def _delta(
    module: str, pair: dict[str, FloatArray], settings: dict[str, Any], shape: tuple[int, ...], file: Path
) -> FloatArray:
    """B @ A * scale, [out, in]; Hu et al., LoRA, 2021, section 4.1, and rank-stabilised scaling."""
    if set(pair) != {"A", "B"} or pair["A"].ndim != 2 or pair["B"].ndim != 2 or len(pair["A"]) != pair["B"].shape[1]:
        raise CheckpointError(f"{file}: lora_A and lora_B of {module} do not fit each other")
    changed, rank = (len(pair["B"]), pair["A"].shape[1]), len(pair["A"])
    if changed != shape:  # before the product: two vectors can ask for a matrix of terabytes
        raise CheckpointError(
            f"{file}: the change to {Weights.canonical(module):.120}.weight has shape {list(changed)}, "
            f"the base model's tensor {list(shape)}"
        )
    if not rank:
        raise CheckpointError(f"{file}: lora_A and lora_B of {module} have rank 0, expected 1 or more")
    alpha = _pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha", 8))
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    with np.errstate(over="ignore", invalid="ignore"):  # the sum is looked at, once it is there
        return np.asarray((pair["B"] @ pair["A"]) * np.float32(scale), dtype=np.float32)


def _pattern(patterns: Any, module: str, default: Any) -> float:
    """The value of the first pattern that ends the module's path, as PEFT matches them."""
    patterns = patterns or {}
    if not isinstance(patterns, dict) or len(patterns) > MOST_PATTERNS or (patterns and len(module) > LONGEST_PATH):
        raise CheckpointError(
            f"{CONFIG}: alpha_pattern is {patterns!r:.80}, expected an object of at most {MOST_PATTERNS} patterns, "
            f"for modules whose paths have at most {LONGEST_PATH} characters"
        )
    for pattern, value in patterns.items():
        if len(pattern) > LONGEST_PATH or UNBOUNDED.search(pattern):
            raise CheckpointError(
                f"{CONFIG}: alpha_pattern has {pattern!r:.80}, which may take for ever to compare; expected the path "
                f"of a module, at most {LONGEST_PATH} characters, with at most two of * + ? {{ | and none after )"
            )
        try:
            found = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as cause:
            raise CheckpointError(
                f"{CONFIG}: alpha_pattern has {pattern!r:.80}, no regular expression: {cause}"
            ) from cause
        if found:
            default = value
            break
    if not isinstance(default, (int, float)) or isinstance(default, bool) or not abs(default) <= LARGEST_ALPHA:
        raise CheckpointError(
            f"{CONFIG}: lora_alpha of {module} is {default!r:.40}, expected a number of at most {LARGEST_ALPHA:g}"
        )
    return float(default)
