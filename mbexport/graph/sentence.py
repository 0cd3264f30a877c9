"""The steps of a sentence-transformers pipeline: dense layers, pooling, normalization."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mbexport.checkpoint.sentence_config import SENTENCE, TOKENS, DenseSpec, NormalizeSpec, SentenceSpec
from mbexport.graph.builder import GraphBuilder
from mbexport.graph.layers import activation, linear, scaled
from mbexport.graph.pooling import pool
from mbexport.graph.rows import Rows

SMALLEST_NORM = 1e-12  # torch.nn.functional.normalize's eps


def add_sentence_outputs(b: GraphBuilder, sentence: SentenceSpec, hidden: ir.Value, rows: Rows, size: int) -> None:
    """Declare ``token_embeddings`` and, where there is a pooling, ``sentence_embedding``.

    ``last_hidden_state``, the encoder's own vectors, is there too: tools that run the later
    steps themselves, such as sentence-transformers over optimum, ask for it.

    Args:
        b: the graph.
        sentence: the pipeline.
        hidden: the encoder's vectors, [batch, sequence, size].
        rows: the batch.
        size: of the encoder's vectors.
    """
    encoded = b.op("Identity", hidden, name="encoded")
    b.output(encoded, "last_hidden_state", ir.DataType.FLOAT, ["batch", "sequence", size])
    tokens = hidden
    for number, step in enumerate(sentence.steps):
        if step.on == TOKENS:
            tokens = _step(b, tokens, step, number)
    width = sentence.width(size, TOKENS)
    if sentence.pooling is None:
        b.output(tokens, TOKENS, ir.DataType.FLOAT, ["batch", "sequence", width])
        return
    vector = b.tap(pool(b, tokens, rows, sentence.pooling), "pooled")
    for number, step in enumerate(sentence.steps):
        if step.on == SENTENCE:
            vector = _step(b, vector, step, number)
    b.output(tokens, TOKENS, ir.DataType.FLOAT, ["batch", "sequence", width])
    b.output(vector, SENTENCE, ir.DataType.FLOAT, [*rows.text_axes, sentence.width(size, SENTENCE)])


def _step(b: GraphBuilder, x: ir.Value, step: DenseSpec | NormalizeSpec, number: int) -> ir.Value:
    """x [..., width] -> [..., width of the step]."""
    if isinstance(step, DenseSpec):
        with b.scope(step.folder):
            y = linear(b, scaled(b, x, f"{step.folder}.linear.in"), f"{step.folder}.linear")
            return y if step.activation == "identity" else activation(b, y, step.activation)
    with b.scope(f"normalize_{number}"):
        norm = b.op("ReduceL2", x, b.ints(-1), name="norm", keepdims=1)
        return b.op(
            "Div",
            x,
            b.op("Max", norm, b.constant("smallest_norm", np.float32(SMALLEST_NORM)), name="safe"),
            name="unit",
        )
