"""The whole graph, from input ids to outputs: start reading here."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from mbexport.checkpoint.spec import ModelSpec
from mbexport.graph.builder import GraphBuilder
from mbexport.graph.dialect import Dialect
from mbexport.graph.engine import EngineDialect
from mbexport.graph.fused import FusedDialect
from mbexport.graph.heads import add_head, add_selecting_head
from mbexport.graph.joined import join_codes
from mbexport.graph.layers import layer_norm
from mbexport.graph.mlp import gated_mlp
from mbexport.graph.portable import PortableDialect
from mbexport.graph.products import Products, ProductsOf
from mbexport.graph.rows import PackedRows, PaddedRows, Rows
from mbexport.graph.sites import attention_input, attention_output

DIALECTS: dict[str, type[Dialect]] = {
    "portable": PortableDialect,
    "onnxruntime": FusedDialect,
    "tensorrt": EngineDialect,
}


def build_graph(
    spec: ModelSpec,
    weights: Mapping[str, ir.TensorProtocol],
    dialect: str,
    producer_version: str,
    *,
    selects_tokens: bool = False,
    packed: bool = False,
    products: ProductsOf | None = None,
) -> ir.Model:
    """Author the graph of a ModernBERT.

    Inputs ``input_ids`` and ``attention_mask``, int64 [batch, sequence]; outputs as the
    model's head declares them. A packed graph takes rows of several texts: ``attention_mask`` holds a number
    for each text of a row, 0 for padding, and ``position_ids``, int64 of the same shape, the places of
    tokens in their texts. What it answers for a text stands at each of the text's tokens.

    Matrix products have the element types of their weights; everything between them is float32.

    Args:
        spec: the model.
        weights: its tensors, prepared by ``mbexport.bundle``.
        dialect: a key of DIALECTS.
        producer_version: written into the model.
        selects_tokens: outputs of chosen tokens only, whose places are a third input.
        packed: a row holds several texts; not in ONNX Runtime's dialect, nor with ``max`` pooling.
        products: how the encoder's products are computed; None for the dialect's own way.

    Raises:
        GraphError: a weight is missing or left over, or the graph cannot be packed.
    """
    b = GraphBuilder(weights)
    input_ids = b.input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
    attention_mask = b.input("attention_mask", ir.DataType.INT64, ["batch", "sequence"])
    rows: Rows
    if packed:
        rows = PackedRows(attention_mask, b.input("position_ids", ir.DataType.INT64, ["batch", "sequence"]))
    else:
        rows = PaddedRows(b.op("Cast", attention_mask, name="real_tokens", to=ir.DataType.BOOL))
    blocks = DIALECTS[dialect](b, spec, rows)
    computed = (products or blocks.products)(b)
    hidden = encode(b, spec, blocks, computed, input_ids)
    if selects_tokens:
        add_selecting_head(b, spec, computed, hidden)
    else:
        add_head(b, spec, computed, hidden, rows)
    model = b.build("modernbert", producer_version, DIALECTS[dialect].opset)
    join_codes(model)
    return model


def encode(b: GraphBuilder, spec: ModelSpec, dialect: Dialect, products: Products, input_ids: ir.Value) -> ir.Value:
    """input_ids [batch, sequence] -> last hidden state [batch, sequence, hidden].

    Pre-norm: each block reads the norm of the residual stream and adds to the stream.
    """
    with b.scope("embeddings"):
        rows = b.tap(products.embed(input_ids), "embeddings.tok_embeddings")
        hidden = b.tap(layer_norm(b, rows, "embeddings.norm", spec.norm_eps), "embeddings.norm")
    normed = hidden  # the first layer's attention has no norm of its own: the embeddings' norm serves it
    for number, is_global in enumerate(spec.layer_is_global):
        path = f"layers.{number}"
        with b.scope(f"{path}/attn"):
            entered, site = products.enter(normed, attention_input(path)), attention_output(path)
            q, k, v = (b.tap(products.linear(entered, matrix), matrix) for matrix in attention_input(path).matrices)
            attended = b.tap(dialect.attention(q, k, v, is_global=is_global), f"{path}.attn.attended")
            update = b.tap(products.linear(products.enter(attended, site), *site.matrices), *site.matrices)
        hidden, normed = _add(b, dialect, hidden, update, f"{path}.attn_residual", f"{path}.mlp_norm")
        with b.scope(f"{path}/mlp"):
            update = gated_mlp(b, products, dialect, normed, path)
        following = f"layers.{number + 1}.attn_norm" if number + 1 < spec.num_layers else "final_norm"
        hidden, normed = _add(b, dialect, hidden, update, f"{path}.mlp_residual", following)
    return normed


def _add(
    b: GraphBuilder, dialect: Dialect, x: ir.Value, update: ir.Value, residual: str, norm: str
) -> tuple[ir.Value, ir.Value]:
    """See :meth:`mbexport.graph.dialect.Dialect.add_and_norm`; both results are tapped."""
    total, normed = dialect.add_and_norm(x, update, residual, norm)
    return b.tap(total, residual), b.tap(normed, norm)
