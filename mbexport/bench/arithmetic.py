"""The arithmetic floor: multiply-adds that a model cannot do without. Standard library only.

For a text of L tokens, hidden size H and intermediate size I, per layer:

- projections: [L, H] x [H, 3H] (queries, keys, values), [L, H] x [H, H] (output),
  [L, H] x [H, 2I] (both halves of the gated MLP), [L, I] x [I, H]: L (4 H^2 + 3 H I);
- attention: every pair of a query and a key that it sees costs H for the score and H for the
  weighted sum, over all heads: 2 H pairs. Global layers have L^2 pairs; local layers, of a reach
  of w to either side, L + 2 sum over d = 1 .. min(w, L - 1) of (L - d).

The head costs [n, H] x [H, H] (n texts, or tokens where each has outputs) and its classifier
[n, H] x [H, outputs]. Embeddings, norms, activations and rotations count as free, and so do the
Dense layers of a sentence-transformers pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbexport.errors import BundleError
from mbexport.files import read_json
from mbexport.manifest import Manifest

PER_TOKEN_HEADS = ("token-classification", "question-answering")


@dataclass(frozen=True)
class ModelSize:
    """What the formula needs of a model.

    ``half_window``: reach of a local layer to either side. ``head_outputs``: columns of the
    classifier, 0 without a head; ``per_token``: the head works on every token.
    """

    hidden: int
    intermediate: int
    layer_is_global: tuple[bool, ...]
    half_window: int
    vocab_size: int
    pad_id: int
    head_outputs: int
    per_token: bool

    def multiply_adds(self, lengths: Sequence[int]) -> int:
        """Multiply-adds of texts of these lengths."""
        return self.of_projections(lengths) + sum(self._besides_projections(length) for length in lengths)

    def of_projections(self, lengths: Sequence[int]) -> int:
        """Of these, the layers' four projections: what INT8 and FP8 graphs compute in 8 bits."""
        return len(self.layer_is_global) * sum(lengths) * sum(inputs * outputs for inputs, outputs in self.products())

    def _besides_projections(self, length: int) -> int:
        """Attention of a text, and its head."""
        pairs = sum(length * length if is_global else self._local_pairs(length) for is_global in self.layer_is_global)
        head = self.hidden * (self.hidden + self.head_outputs) if self.head_outputs else 0
        return 2 * self.hidden * pairs + head * (length if self.per_token else 1)

    def _local_pairs(self, length: int) -> int:
        """Pairs of a query and a key within the window."""
        reach = min(self.half_window, length - 1)
        return length + 2 * reach * length - reach * (reach + 1)

    def products(self) -> tuple[tuple[int, int], ...]:
        """[inputs, outputs] of a layer's four projections."""
        hidden, inner = self.hidden, self.intermediate
        return ((hidden, 3 * hidden), (hidden, hidden), (hidden, 2 * inner), (inner, hidden))


def model_size(bundle: Path, manifest: Manifest) -> ModelSize:
    """The size of a bundle's model, from its config.json of either generation.

    Raises:
        BundleError: config.json is missing, damaged, or a number in it is none.
    """
    path = bundle / "config.json"
    config = read_json(path, BundleError)

    def size(key: str, default: int) -> int:
        value: Any = config.get(key)
        value = default if value is None else value
        if type(value) is not int or value < 0:
            raise BundleError(f"{path}: {key} is {value!r}, expected a whole number; export again")
        return value

    layer_types = config.get("layer_types")
    if layer_types is None:
        every = max(1, size("global_attn_every_n_layers", 3))
        layers = tuple(number % every == 0 for number in range(size("num_hidden_layers", 22)))
    else:
        layers = tuple(kind == "full_attention" for kind in layer_types)
    vocabulary = size("vocab_size", 50_368)
    outputs = {"question-answering": 2, "fill-mask": vocabulary, "multiple-choice": 1, "feature-extraction": 0}
    return ModelSize(
        hidden=size("hidden_size", 768),
        intermediate=size("intermediate_size", 1152),
        layer_is_global=layers,
        half_window=size("local_attention", 128) // 2,
        vocab_size=vocabulary,
        pad_id=size("pad_token_id", 0),
        head_outputs=outputs.get(manifest.task, len(manifest.labels or ())),
        per_token=manifest.task in PER_TOKEN_HEADS,
    )
