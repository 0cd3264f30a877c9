"""Who is measured on a GPU, and in which order. Standard library and mbexport's own only."""

from __future__ import annotations

from dataclasses import dataclass

from mbexport.bench.workloads import Maker, Workload, normal_lengths

REFERENCE, FALLBACK = "PyTorch, FlashAttention", "PyTorch, SDPA"  # what the others are compared with
EXACT = "PyTorch, FP32"  # what all answers are compared with
BUILDERS = {"tensorrt-rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}
SHORT, LONG = 512, 8192


@dataclass(frozen=True)
class Contender:
    """One way to run the model.

    Attributes:
        name: how tables name it.
        kind: ``unpadded`` and ``sdpa`` (PyTorch), ``graph`` (mbexport on ONNX Runtime) or ``engine`` (on TensorRT).
        precision: of its projections.
        packed: of a graph or an engine, whether a row holds several texts.
        builder: of an engine.
        compiled: a mode of torch.compile.
        one_shape: takes workloads of one shape only.
        for_engines: of a graph in FP32, whether it is the one that engines are built from, with one Attention node a
            layer, in the place of the one for ONNX Runtime.
        captured: of a graph, whether each shape's run is a CUDA graph, which mbexport's runtime does not do.
    """

    name: str
    kind: str
    precision: str
    packed: bool = False
    builder: str | None = None
    compiled: str | None = None
    one_shape: bool = False
    for_engines: bool = False
    captured: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether it runs a graph or an engine of mbexport's."""
        return self.kind in ("graph", "engine")

    def takes(self, workload: Workload) -> bool:
        """Whether it runs a workload."""
        return not self.one_shape or len(workload.texts) == 1


def contenders() -> list[Contender]:
    """All, those first whose figures are worth most if time ends."""
    first = [
        Contender(REFERENCE, "unpadded", "fp16"),
        Contender("mbexport, ONNX Runtime, FP16", "graph", "fp16"),
        Contender("mbexport, ONNX Runtime, FP16, CUDA graphs", "graph", "fp16", one_shape=True, captured=True),
        Contender(FALLBACK, "sdpa", "fp16"),
        Contender("mbexport, ONNX Runtime, FP16, packed", "graph", "fp16", packed=True),
        *_engines("fp16"),
        Contender("PyTorch, SDPA, CUDA graphs", "sdpa", "fp16", compiled="reduce-overhead", one_shape=True),
        Contender("PyTorch, FlashAttention, compiled", "unpadded", "fp16", compiled="default"),
    ]
    return [
        *first,
        *_engines("int8"),
        *_engines("fp8"),
        Contender("mbexport, ONNX Runtime, FP32", "graph", "fp32"),
        Contender("mbexport, ONNX Runtime, FP32, packed", "graph", "fp32", packed=True),
        Contender("mbexport, ONNX Runtime, FP32, engines' graph", "graph", "fp32", for_engines=True),
        Contender("PyTorch, SDPA, compiled", "sdpa", "fp16", compiled="default"),
    ]


def _engines(precision: str) -> list[Contender]:
    """Of each builder, padded and packed."""
    return [
        Contender(
            f"mbexport, {title}, {precision.upper()}{', packed' if packed else ''}",
            "engine",
            precision,
            packed,
            builder,
        )
        for builder, title in BUILDERS.items()
        for packed in (False, True)
    ]


def workloads(maker: Maker, *, smoke: bool) -> list[Workload]:
    """Latency of one text, then the sets of the ModernBERT paper's efficiency script with fewer texts, shortest first.

    Texts of equal length, and of lengths Normal(mean, mean / 4). The paper has 8,192 texts in each; its peers' batches
    are padded to the longest that there may be, here to the longest that there is.
    """
    if smoke:
        short = maker.texts("variable-short", normal_lengths(12, 64, 16, 128), 4)
        return [maker.shape("1x16"), maker.shape("1x128"), short]
    texts, batch = 262_144 // SHORT, 32
    few, few_batch = 262_144 // LONG, 4
    return [
        *map(maker.shape, ("1x128", "1x512", "1x8192")),
        maker.texts("fixed-short", [SHORT] * texts, batch),
        maker.texts("variable-short", normal_lengths(texts, 256, 64, SHORT), batch),
        maker.texts("fixed-long", [LONG] * few, few_batch),
        maker.texts("variable-long", normal_lengths(few, 4096, 1024, LONG), few_batch),
    ]
