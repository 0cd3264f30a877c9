"""The whole model in plain NumPy, written from the ModernBERT paper: what it says of windows is what graphs compute.

Warner et al., "Smarter, Better, Faster, Longer" (arXiv 2412.13663), section 2.1: global layers attend to every token,
local layers to a sliding window of 128 tokens; GeGLU; pre-norm; rotary embeddings with a base of 160,000 in global
and 10,000 in local layers; no norm before the first attention; no biases. Token i of a local layer attends to token j
where |i - j| <= local_attention // 2, both ends counted. Nothing here is shared with the graphs' code.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mbexport import export_onnx
from tests.checkpoints import save_checkpoint, torch_model, torch_output
from tests.inputs import GRAPHS, allowed_error, error, padded_batch, run_graph

LENGTHS = (1, 63, 64, 65, 66, 128, 129, 130, 257, 300)
Array = np.ndarray


def attends(distance: int) -> bool:
    """The definition."""
    return abs(distance) <= 128 // 2


# Windows that are wrong by one, or open at one end; distance is that of j to the right of i.
WRONG = {
    "63 to either side": lambda distance: abs(distance) <= 63,
    "65 to either side": lambda distance: abs(distance) <= 65,
    "open on the right": lambda distance: -64 <= distance < 64,
    "open on the left": lambda distance: -64 < distance <= 64,
}


@dataclass
class PaperModel:
    """A ModernBERT classifier that computes one text at a time in float64."""

    weights: dict[str, Array]
    config: dict
    window: object = attends

    def logits(self, ids: Array, mask: Array) -> Array:
        """[batch, sequence] -> [batch, labels]."""
        return np.stack([self.text(*pair) for pair in zip(ids, mask, strict=True)])

    def text(self, ids: Array, mask: Array) -> Array:
        real = mask.astype(bool)
        hidden = self.norm(self.weights["model.embeddings.tok_embeddings.weight"][ids], "model.embeddings.norm")
        for layer, kind in enumerate(self.config["layer_types"]):
            path = f"model.layers.{layer}"
            normed = self.norm(hidden, f"{path}.attn_norm") if layer else hidden
            hidden = hidden + self.attention(normed, f"{path}.attn", kind, real)
            hidden = hidden + self.mlp(self.norm(hidden, f"{path}.mlp_norm"), f"{path}.mlp")
        hidden = self.norm(hidden, "model.final_norm")
        pooled = hidden[0] if self.config["classifier_pooling"] == "cls" else hidden[real].mean(axis=0)
        pooled = self.norm(gelu(self.linear(pooled, "head.dense")), "head.norm")
        return self.linear(pooled, "classifier") + self.weights["classifier.bias"]

    def attention(self, hidden: Array, path: str, kind: str, real: Array) -> Array:
        length, heads = len(hidden), self.config["num_attention_heads"]
        q, k, v = np.split(self.linear(hidden, f"{path}.Wqkv").reshape(length, 3, heads, -1), 3, axis=1)
        theta = self.config["rope_parameters"][kind]["rope_theta"]
        q, k, v = rotated(q[:, 0], theta), rotated(k[:, 0], theta), v[:, 0]  # [sequence, heads, head size]
        output = np.zeros_like(v)
        for i in range(length):
            seen = [j for j in range(length) if real[j] and (kind == "full_attention" or self.window(j - i))]
            if seen:  # a padded place may see nothing, and nothing sees it
                scores = np.einsum("hd,jhd->hj", q[i], k[seen]) / math.sqrt(q.shape[-1])
                shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
                output[i] = np.einsum("hj,jhd->hd", shares / shares.sum(axis=-1, keepdims=True), v[seen])
        return self.linear(output.reshape(length, -1), f"{path}.Wo")

    def mlp(self, hidden: Array, path: str) -> Array:
        value, gate = np.split(self.linear(hidden, f"{path}.Wi"), 2, axis=-1)
        return self.linear(gelu(value) * gate, f"{path}.Wo")

    def norm(self, hidden: Array, path: str) -> Array:
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        return centred / np.sqrt(variance + self.config["norm_eps"]) * self.weights[f"{path}.weight"]

    def linear(self, hidden: Array, path: str) -> Array:
        return hidden @ self.weights[f"{path}.weight"].T


def gelu(x: Array) -> Array:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def rotated(x: Array, theta: float) -> Array:
    """[sequence, heads, head size]: pairs of channels (c, c + half) turned by place * theta^(-2c / size)."""
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None, None] * theta ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    turned = (first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles))
    return np.concatenate(turned, axis=-1)


def make_model(folder: Path, pooling: str) -> tuple[Path, Path, PaperModel]:
    """A checkpoint, its bundle, and the same weights for the paper's model."""
    layers = {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 48}
    checkpoint = save_checkpoint(folder / "checkpoint", classifier_pooling=pooling, **layers)
    export_onnx(checkpoint, folder / "bundle")
    tensors = {name: tensor.astype(np.float64) for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    return checkpoint, folder / "bundle", PaperModel(tensors, json.loads((checkpoint / "config.json").read_text()))


@pytest.fixture(scope="module")
def mean_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, PaperModel]:
    return make_model(tmp_path_factory.mktemp("paper"), "mean")


def inputs(length: int, pooling: str) -> tuple[Array, Array]:
    """Every padding; where the first place is pooled, it is a real one."""
    ids, mask = padded_batch(length, vocabulary=512)
    rows = mask[:, 0] == 1
    return (ids[rows], mask[rows]) if pooling == "cls" else (ids, mask)


def check_equal(model: tuple[Path, Path, PaperModel]) -> None:
    checkpoint, bundle, paper = model
    references = [torch_model(checkpoint, implementation) for implementation in ("eager", "sdpa")]
    for length in LENGTHS:
        ids, mask = inputs(length, paper.config["classifier_pooling"])
        expected = paper.logits(ids, mask)
        limit = allowed_error(expected)
        for reference in references:
            assert error(torch_output(reference, ids, mask), expected, mask) <= limit, length
        for graph in GRAPHS:
            assert error(run_graph(bundle, graph, ids, mask), expected, mask) <= limit, (graph, length)


def test_graphs_and_pytorch_compute_the_paper(mean_model: tuple[Path, Path, PaperModel]) -> None:
    check_equal(mean_model)


def test_the_first_token_pooled(tmp_path: Path) -> None:
    check_equal(make_model(tmp_path, "cls"))


@pytest.mark.parametrize("wrong", WRONG)
def test_a_window_that_is_wrong_is_found(wrong: str, mean_model: tuple[Path, Path, PaperModel]) -> None:
    """The control: up to 64 tokens the windows are the same, beyond them they differ."""
    checkpoint, bundle, paper = mean_model
    other = PaperModel(paper.weights, paper.config, WRONG[wrong])
    reference = torch_model(checkpoint, "sdpa")
    for length in (64, 128, 257):
        ids, mask = (x[:1] for x in padded_batch(length, vocabulary=512))  # unpadded
        expected = other.logits(ids, mask)
        found = [torch_output(reference, ids, mask), *(run_graph(bundle, graph, ids, mask) for graph in GRAPHS)]
        for values in found:
            is_same = error(values, expected, mask) <= 3 * allowed_error(paper.logits(ids, mask))
            assert is_same is (length == 64), (length, wrong)
