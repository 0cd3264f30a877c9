"""Export a checkpoint by transformers' own OnnxExporter (transformers 5.23 or later).

    python benchmarks/export_transformers.py CHECKPOINT FOLDER [--fused]

Batch and sequence are dynamic. ``--fused``: with its fusions for ONNX Runtime on a CPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import transformers
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

EXAMPLE_SHAPE = (2, 192)  # beyond the window, so that nothing is specialised to short texts


def main() -> None:
    """Export, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fused", action="store_true")
    arguments = parser.parse_args()
    architecture = json.loads((arguments.checkpoint / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(
        arguments.checkpoint, attn_implementation="sdpa", dtype=torch.float32
    )
    ids = torch.randint(100, 200, EXAMPLE_SHAPE)
    mask = torch.ones_like(ids)
    mask[0, 150:] = 0  # a mask of ones would be left out
    config = OnnxConfig(dynamic=True, ort_fusions="cpu" if arguments.fused else None)
    exported = OnnxExporter().export(model.eval(), {"input_ids": ids, "attention_mask": mask}, config=config)
    exported.save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
