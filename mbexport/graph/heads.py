"""What stands on the encoder: the prediction head, the last layer, the outputs."""

from __future__ import annotations

import onnx_ir as ir

from mbexport.checkpoint.head_config import HeadSpec
from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.builder import Dim, GraphBuilder, element_type
from mbexport.graph.layers import activation, exact_linear, layer_norm, linear, scaled
from mbexport.graph.pooling import pool
from mbexport.graph.products import Products
from mbexport.graph.rows import Rows
from mbexport.graph.sentence import add_sentence_outputs

TOKENS: list[Dim] = ["batch", "sequence"]
MOST_EXACT = 64  # outputs of a last layer that is float32 in a half-precision graph


def add_head(b: GraphBuilder, spec: ModelSpec, products: Products, hidden: ir.Value, rows: Rows) -> None:
    """Declare the outputs of the model's task.

    Args:
        b: the graph.
        spec: the model; its head decides.
        products: how products with the embedding matrix are computed.
        hidden: [batch, sequence, hidden].
        rows: the batch.
    """
    head = spec.head
    if spec.sentence is not None:
        add_sentence_outputs(b, spec.sentence, hidden, rows, spec.hidden_size)
    elif head is None:
        b.output(hidden, "last_hidden_state", ir.DataType.FLOAT, [*TOKENS, spec.hidden_size])
    elif head.task == "question-answering":
        logits = _predict(b, spec, products, head, hidden)  # [batch, sequence, 2]
        parts = b.multi("Split", logits, outputs=2, name="start_and_end", axis=-1, num_outputs=2)
        for part, name in zip(parts, ("start_logits", "end_logits"), strict=True):
            b.output(b.op("Squeeze", part, b.ints(2), name=name), name, ir.DataType.FLOAT, TOKENS)
    elif head.pooling is None:
        b.output(_predict(b, spec, products, head, hidden), "logits", ir.DataType.FLOAT, [*TOKENS, head.outputs])
    else:
        with b.scope("head"):
            # Classifiers take the first position, be it padding or not; choices the first real token.
            first = "cls" if head.task == "multiple-choice" else "first_position"
            pooled = b.tap(pool(b, hidden, rows, first if head.pooling == "cls" else head.pooling), "pooled")
        logits = _predict(b, spec, products, head, pooled)
        b.output(logits, "logits", ir.DataType.FLOAT, [*rows.text_axes, head.outputs])


def add_selecting_head(b: GraphBuilder, spec: ModelSpec, products: Products, hidden: ir.Value) -> None:
    """Outputs of chosen tokens only: a vocabulary of logits is more work than several layers.

    Declares one more input, ``positions``, int64 [selected]: places of tokens in the batch laid
    out in one row (row * sequence + place). Output: ``logits`` [selected, outputs].
    """
    positions = b.input("positions", ir.DataType.INT64, ["selected"])
    if spec.head is None:
        raise ValueError("a bare encoder has no outputs to select")
    tokens = b.op("Reshape", hidden, b.ints(-1, spec.hidden_size), name="all_tokens")
    selected = b.op("Gather", tokens, positions, name="selected_tokens", axis=0)
    logits = _predict(b, spec, products, spec.head, selected)
    b.output(logits, "logits", ir.DataType.FLOAT, ["selected", spec.head.outputs])


def is_exact(head: HeadSpec) -> bool:
    """Whether the last layer stays float32 in a half-precision graph; a vocabulary of outputs does not."""
    return not head.tied and head.outputs <= MOST_EXACT


def _predict(b: GraphBuilder, spec: ModelSpec, products: Products, head: HeadSpec, x: ir.Value) -> ir.Value:
    """x [..., hidden] -> dense -> activation -> norm -> last layer [..., outputs]."""
    with b.scope("head"):
        dense = b.tap(linear(b, scaled(b, x, "head.in"), "head.dense"), "head.dense")
        normed = layer_norm(b, activation(b, dense, head.activation), "head.norm", spec.norm_eps)
        b.tap(normed, "head.norm")
    if head.tied:
        with b.scope(head.last_layer):
            entered = scaled(b, normed, f"{head.last_layer}.in")
            return _tied_linear(b, products, entered, head.last_layer, spec.hidden_size)
    if element_type(b.weight("head.dense.weight")) != ir.DataType.FLOAT and is_exact(head):
        return exact_linear(b, normed, head.last_layer)
    return linear(b, scaled(b, normed, f"{head.last_layer}.in"), head.last_layer)


def _tied_linear(b: GraphBuilder, products: Products, x: ir.Value, last: str, hidden_size: int) -> ir.Value:
    """x [..., hidden] @ embeddings^T (+ bias) -> [..., vocabulary]."""
    logits = products.tied(b.op("Reshape", x, b.ints(-1, hidden_size), name="rows"), last)
    leading = b.op("Shape", x, name="leading", start=0, end=-1)
    return b.op("Reshape", logits, b.op("Concat", leading, b.ints(-1), name="shape", axis=0), name="logits")
