"""Who is measured: a runtime, a model and a number of threads. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mbexport.disk.external import check_external_data
from mbexport.errors import InputError
from mbexport.optional import require
from mbexport.options import LARGEST_ERROR

# Packages that a kind needs besides the runtime's own.
PACKAGES: dict[str, tuple[str, ...]] = {
    "mbexport": (),
    "mbexport-int8": (),
    "onnxruntime": (),
    "openvino": ("openvino",),
    "torch-eager": ("torch", "transformers"),
    "torch-sdpa": ("torch", "transformers"),
    "torch-compile": ("torch", "transformers"),
}
OWN = {"mbexport": "fp32", "mbexport-int8": "int8"}  # kinds that are this package's runtime, and their precision
PEERS = tuple(kind for kind in PACKAGES if kind not in OWN)
PORTABLE_GRAPH, FUSED_GRAPH = "onnx/model.onnx", "onnx/model_ort.onnx"


@dataclass(frozen=True)
class Contender:
    """One runtime with one model.

    ``kind``: one of PACKAGES. ``path``: a bundle (mbexport), an ONNX file (onnxruntime,
    openvino) or a checkpoint directory (torch-*). ``threads``: cores of one call. ``allowed_error``:
    share of the first contender's spread that its answers may differ by. ``doubt``: why its answers
    count as wrong however close they are. ``graph``: of a bundle, the file that runs padded rows. ``kernels``: what its
    process has in MBEXPORT_KERNELS; None for what this one has.
    """

    name: str
    kind: str
    path: str
    threads: int
    allowed_error: float = LARGEST_ERROR
    doubt: str | None = None
    graph: str = FUSED_GRAPH
    kernels: str | None = None

    def on_padded_rows(self) -> Contender:
        """What runs a workload that is padded for all: mbexport's own runtime never pads, so its graph file does."""
        if self.kind not in OWN:
            return self
        return replace(self, kind="onnxruntime", path=str(Path(self.path) / self.graph))


def parse_peer(text: str, bundle: Path, threads: int, allowed_error: float = LARGEST_ERROR) -> Contender:
    """The contender that ``NAME`` or ``NAME=PATH`` asks for.

    Args:
        text: that.
        bundle: whose portable graph is run where there is no path.
        threads: cores of one call.
        allowed_error: share of the spread that its answers may differ by.

    Raises:
        InputError: no such name, no such path, or a path that the name needs is not given; or a graph that names
            tensors in other places than beside it.
        MissingExtraError: its packages are not installed.
    """
    kind, _, path = text.partition("=")
    if kind not in PEERS:
        raise InputError(f"--against {text}: there is no contender {kind!r}, expected one of {', '.join(PEERS)}")
    needs_checkpoint = kind.startswith("torch")
    if needs_checkpoint and not path:
        raise InputError(f"--against {kind} needs the checkpoint that it loads: --against {kind}=CHECKPOINT")
    target = Path(path) if path else bundle / PORTABLE_GRAPH
    expected = target / "config.json" if needs_checkpoint else target
    if not expected.is_file():
        what = "a checkpoint directory" if needs_checkpoint else "an ONNX file"
        raise InputError(f"--against {text}: {expected} is no file, expected {what}")
    require(*PACKAGES[kind])
    if not needs_checkpoint:
        check_external_data(target, InputError)
    return Contender(text, kind, str(target), threads, allowed_error)
