"""Small FP16 graphs with Attention nodes, in the form that TensorRT engines are built from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from mbexport.bundle.engine_graph import FP32_FILE
from mbexport.files import sha256
from mbexport.graph.builder import GraphBuilder
from mbexport.manifest import Graph

NUMPY = {"fp16": np.float16, "fp32": np.float32}
VOCABULARY = 64


def attention_model(kinds: str, *, heads: dict[str, tuple[int, int]], precision: str = "fp16") -> ir.Model:
    """Layers that attend and add, over an embedding; inputs and output as a bundle's graphs have them.

    Args:
        kinds: a letter a layer: G for a global one (its mask expanded by query), l for a local one.
        heads: by letter, how many heads and how large each is; their product is equal for both.
        precision: of everything but the output.
    """
    dtype, generator = NUMPY[precision], np.random.default_rng(0)
    hidden = int(np.prod(heads[kinds[0]]))
    weights = {"table": ir.tensor(generator.normal(size=(VOCABULARY, hidden)).astype(dtype), name="table")}
    for number in range(len(kinds)):
        for part in "qkvo":
            name = f"{number}.{part}"
            weights[name] = ir.tensor((generator.normal(size=(hidden, hidden)) * hidden**-0.5).astype(dtype), name=name)
    b = GraphBuilder(weights)
    ids = b.input("input_ids", ir.DataType.INT64, ["batch", "sequence"])
    mask = b.input("attention_mask", ir.DataType.INT64, ["batch", "sequence"])
    real = b.op("Cast", mask, name="real", to=ir.DataType.BOOL)
    masked, seen = b.constant("masked", dtype(-30000)), b.constant("seen", dtype(0))
    keys = b.op("Unsqueeze", b.op("Where", real, seen, masked, name="bias"), b.ints(1, 2), name="bias_keys")
    length = b.op("Shape", mask, name="length", start=1, end=2)
    shape = b.op("Concat", b.ints(1, 1), length, b.ints(1), name="shape", axis=0)
    expanded = b.op("Expand", keys, shape, name="bias_by_query")
    stream = b.op("Gather", b.weight("table"), ids, name="embedded")
    for number, kind in enumerate(kinds):
        with b.scope(f"layers.{number}"), b.scope("attn"):
            q, k, v = (b.op("MatMul", stream, b.weight(f"{number}.{part}"), name=part) for part in "qkv")
            count, size = heads[kind]
            bias = expanded if kind == "G" else b.op("Identity", expanded, name="own_bias")
            attended = b.op(
                "Attention", q, k, v, bias, name="attended", q_num_heads=count, kv_num_heads=count, scale=size**-0.5
            )
            stream = b.op("Add", stream, b.op("MatMul", attended, b.weight(f"{number}.o"), name="o"), name="residual")
    output = b.op("Cast", stream, name="widened", to=ir.DataType.FLOAT)
    b.output(output, "last_hidden_state", ir.DataType.FLOAT, ["batch", "sequence", hidden])
    return b.build("attention", "0", 23)


def write_attention_graph(bundle: Path, model: ir.Model, precision: str = "fp16") -> Graph:
    """Write a graph where a bundle has the one for engines; returns the manifest's entry, not yet in the manifest."""
    file = FP32_FILE if precision == "fp32" else f"onnx/model_{precision}.onnx"
    (bundle / "onnx").mkdir(parents=True, exist_ok=True)
    ir.save(model, bundle / file, external_data=f"{Path(file).name}_data", size_threshold_bytes=256)
    return Graph(file, precision, "tensorrt", 23, sha256(bundle / file))
