"""Weights as ONNX Runtime packs them for this CPU, in a file that is mapped: a fast start, shared by processes.

Without it every process packs the matrices anew at its start, into memory of its own. The folder holds a
graph, its weights in both forms, and what it was made of and for; it is of use there only.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path, PurePosixPath
from typing import Any

import onnxruntime

from mbexport import manifest as manifests
from mbexport.errors import BackendError
from mbexport.files import read_json, to_json, write_atomically
from mbexport.manifest import Graph
from mbexport.runtime.backends.ort import CPU
from mbexport.runtime.graphs import cpu_graph

FOLDER, RECORD, GRAPH = "prepacked", "prepacked.json", "model.onnx"
DATA = f"{GRAPH}_data"
LEAST_BYTES = "1024"  # of a tensor that goes to the weights' file; smaller ones are kept in the graph


def prepack(bundle: Path, precision: str = "auto") -> Path:
    """Pack the weights of the graph that :func:`mbexport.runtime.load` takes on this CPU.

    Args:
        bundle: the bundle; gets a folder, or another in the place of an earlier one.
        precision: as ``load`` takes it.

    Returns:
        The folder, ``prepacked/GRAPH``; about 1.7 times as large as the weights.

    Raises:
        BundleError: the bundle is damaged, cannot be written to, or has no such graph.
        InputError: the precision needs a GPU.
        BackendError: ONNX Runtime refuses the graph.
    """
    from mbexport.writing import new_directory  # a runtime only reads

    manifest = manifests.read(bundle)
    manifests.check_files(bundle, manifest)
    graph = cpu_graph(bundle, manifest, precision)
    folder = folder_of(bundle, graph)
    with new_directory(folder, replace=True) as directory:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if graph.fused:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.optimized_model_filepath = str(directory / GRAPH)
        for key, value in {
            "optimized_model_external_initializers_file_name": DATA,
            "optimized_model_external_initializers_min_size_in_bytes": LEAST_BYTES,
            "save_external_prepacked_constant_initializers": "1",
        }.items():
            options.add_session_config_entry(f"session.{key}", value)
        try:
            onnxruntime.InferenceSession(str(bundle / graph.file), options, providers=[CPU])
        except Exception as cause:  # onnxruntime's errors share no public base class
            raise BackendError(f"{bundle / graph.file} cannot be packed by ONNX Runtime: {cause}") from cause
        record = _made_for(graph) | {"bytes": _sizes(directory)}
        write_atomically(directory / RECORD, to_json(record) + "\n")
    return folder


def folder_of(bundle: Path, graph: Graph) -> Path:
    """Where the packed weights of a graph lie, if it has some."""
    return bundle / FOLDER / PurePosixPath(graph.file).stem


def find_prepacked(bundle: Path, graph: Graph) -> tuple[Path | None, str | None]:
    """The file to load in the place of a graph, and why what is there is of no use here; None where there is none.

    Raises:
        BackendError: the record is damaged.
    """
    folder = folder_of(bundle, graph)
    if not (folder / RECORD).is_file():
        return None, None
    record = read_json(folder / RECORD, BackendError)
    for what, here in _made_for(graph).items():
        if record.get(what) != here:
            return None, f"{folder} was made for {what} {record.get(what)!r:.80}, here it is {here!r}"
    if record.get("bytes") != _sizes(folder):
        return None, f"{folder} is incomplete"
    return folder / GRAPH, None


def _made_for(graph: Graph) -> dict[str, Any]:
    """What must be the same where packed weights are used."""
    return {"graph": graph.sha256, "onnxruntime": onnxruntime.__version__, "cpu": cpu_kind()}


def _sizes(folder: Path) -> dict[str, int]:
    return {name: path.stat().st_size for name in (GRAPH, DATA) if (path := folder / name).is_file()}


def cpu_kind() -> str:
    """The CPU's architecture and a hash of what it says it can do, by which ONNX Runtime chooses how it packs."""
    abilities = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):  # of x86-64, of ARM
                abilities = " ".join(sorted(value.split()))
                break
    return f"{platform.machine()} {hashlib.sha256(abilities.encode()).hexdigest()[:16]}"
