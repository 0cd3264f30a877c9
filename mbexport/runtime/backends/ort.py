"""ONNX Runtime, on the CPU or through its CUDA provider."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from mbexport.disk.external import check_external_data
from mbexport.errors import BackendError, BundleError
from mbexport.runtime.backends.interface import POSITION_IDS, FloatArray, IntArray
from mbexport.runtime.backends.tensors import inputs_of, selected
from mbexport.runtime.kernels import kernels

onnxruntime.disable_telemetry_events()

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
# TF32, which that provider takes by itself from Ampere on, keeps 10 bits of FP32's 23; PyTorch takes it when asked.
CUDA_OPTIONS = {"use_tf32": "0"}
# Of 1.31 its kernels were compared with our graphs' nodes, which all have one. Earlier releases lack the standard
# Attention, or If, of opset 23, which then run on the CPU, or give NaN for FP32 rows that are all masked.
OLDEST_WITH_CUDA = (1, 31)


def session_options(*, as_written: bool = False, own_kernels: bool = True) -> onnxruntime.SessionOptions:
    """Options of a session that logs nothing: what goes wrong is raised, and said once.

    Args:
        as_written: leave the graph as it is; else ONNX Runtime optimizes it.
        own_kernels: register mbexport's kernels for the CPU, where there are some.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    library = kernels().library if own_kernels else None
    if library is not None:
        options.register_custom_ops_library(str(library))
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


class OnnxRuntimeBackend:
    """A graph loaded into an ONNX Runtime session; safe to call from several threads.

    Args:
        graph: the ONNX file.
        threads: cores that one call uses; None leaves the choice to ONNX Runtime.
        as_written: ONNX Runtime takes the graph as it is; a graph in its own dialect gains
            nothing by its optimizations, which take time at every start.
        provider: ``CPUExecutionProvider`` or ``CUDAExecutionProvider``, which is then really used:
            ONNX Runtime would put the CPU in its place without an error.

    Attributes:
        per_token: names of the outputs that have a place for each token.
        packs: whether a row holds several texts.
        description: the file, runtime and provider in use.
        device: what computes, ``cpu`` or ``cuda``.

    Raises:
        BundleError: the file names tensors in other places than beside it.
        BackendError: ONNX Runtime refuses the file, or the provider does not work here.
    """

    def __init__(
        self, graph: Path, threads: int | None = None, *, as_written: bool = False, provider: str = CPU
    ) -> None:
        check_external_data(graph, BundleError)
        options = session_options(as_written=as_written, own_kernels=provider == CPU)
        if provider == CPU:  # a plan of memory is kept for every shape that comes, and texts have thousands
            options.enable_mem_pattern = False
        if threads is not None:
            options.intra_op_num_threads = threads
        said = _load_cuda() if provider == CUDA else ""
        try:
            # enable_fallback: a session whose provider fails in a run would go on with the CPU, for good.
            self._session = onnxruntime.InferenceSession(
                str(graph), options, providers=providers_of(provider), enable_fallback=0
            )
        except Exception as cause:  # onnxruntime's errors share no public base class
            raise BackendError(
                f"{graph} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {cause}"
            ) from cause
        used = self._session.get_providers()[0]
        self.device = "cuda" if used == CUDA else "cpu"
        if used != provider:
            raise BackendError(
                f"{provider} of ONNX Runtime {onnxruntime.__version__} does not work here, it took {used}; "
                f"its CUDA and cuDNN libraries may be missing{said and ': ' + said}"
            )
        outputs = self._session.get_outputs()
        sizes = {output.name: output.shape[-1] for output in outputs if output.shape}
        self._widths = {name: size if isinstance(size, int) else 1 for name, size in sizes.items()}
        self._selects = any(given.name == "positions" for given in self._session.get_inputs())
        self.packs = any(given.name == POSITION_IDS for given in self._session.get_inputs())
        self.per_token = frozenset(output.name for output in outputs if "sequence" in output.shape)
        own = kernels().name if provider == CPU else None
        runtime = f"ONNX Runtime {onnxruntime.__version__}{f' with {own} kernels' if own else ''}"
        self.description = f"{graph.name} on {runtime}, {provider}"

    def width(self, output: str) -> int:
        """Size of an output's last axis, 1 where that is the tokens', 0 where the graph has no such output."""
        return self._widths.get(output, 0)

    def run(
        self,
        input_ids: IntArray,
        attention_mask: IntArray,
        positions: IntArray | None = None,
        wanted: Sequence[str] | None = None,
    ) -> dict[str, FloatArray]:
        """One forward pass, as :meth:`mbexport.runtime.backends.interface.Backend.run` says.

        Raises:
            BackendError: ONNX Runtime failed, e.g. out of memory, or ids outside the vocabulary.
        """
        inputs = inputs_of(input_ids, attention_mask, packs=self.packs)
        if positions is not None and self._selects:
            inputs["positions"] = positions
        try:
            values = self._session.run(wanted, inputs)
        except Exception as cause:
            shape = "x".join(map(str, input_ids.shape))
            raise BackendError(f"ONNX Runtime failed on an input of shape {shape}: {cause}") from cause
        outputs = dict(zip(wanted or self._widths, values, strict=True))
        if positions is None or self._selects:
            return outputs
        return selected(outputs, positions, self.per_token)


def providers_of(provider: str) -> list[tuple[str, dict[str, str]]]:
    """A provider with its options, as sessions take it."""
    return [(provider, CUDA_OPTIONS if provider == CUDA else {})]


def is_older_than(release: tuple[int, int]) -> bool:
    """Whether the installed ONNX Runtime is."""
    return tuple(map(int, onnxruntime.__version__.split(".")[:2])) < release


def has_cuda() -> bool:
    """Whether the installed ONNX Runtime was built with CUDA; whether it works shows when a graph is loaded."""
    return CUDA in onnxruntime.get_available_providers()


def _load_cuda() -> str:
    """Load CUDA and cuDNN from NVIDIA's wheels where they are installed; what ONNX Runtime says about it.

    Raises:
        BackendError: this ONNX Runtime was built without CUDA, or is too old.
    """
    version = onnxruntime.__version__
    if not has_cuda():
        raise BackendError(
            f"the installed ONNX Runtime {version} has no {CUDA}; put the GPU's in its place: "
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
        )
    if is_older_than(OLDEST_WITH_CUDA):
        oldest = ".".join(map(str, OLDEST_WITH_CUDA))
        raise BackendError(
            f"ONNX Runtime {version} is installed, whose {CUDA} lacks operators of the bundle's graphs; "
            f"pip install 'onnxruntime-gpu>={oldest}', which needs Python 3.11"
        )
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints
        onnxruntime.preload_dlls()
    return " ".join(said.getvalue().split())
