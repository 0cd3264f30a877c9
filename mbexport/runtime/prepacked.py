"""Weights as ONNX Runtime packs them for this CPU, in a file that is mapped: a fast start, shared by processes.

Without it every process packs the matrices anew at its start, into memory of its own. The folder holds a
graph, its weights in both forms, and what it was made of and for; it is of use there only.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnxruntime

from mbexport import manifest as manifests
from mbexport.disk.external import check_external_data
from mbexport.errors import BackendError, BundleError, InputError
from mbexport.files import Progress, no_progress, read_json, sha256, to_json, write_atomically
from mbexport.manifest import Graph, Manifest
from mbexport.runtime.backends.ort import CPU, OnnxRuntimeBackend, session_options
from mbexport.runtime.graphs import cpu_graph, weights_of
from mbexport.runtime.kernels import kernels

FOLDER, RECORD = "prepacked", "prepacked.json"
LEAST_BYTES = "1024"  # of a tensor that goes to the weights' file; smaller ones are kept in the graph


def prepack(bundle: Path, precision: str = "auto", progress: Progress = no_progress) -> Path:
    """Pack the weights of the graph that :func:`mbexport.runtime.load` takes on this CPU.

    What is there and fits stays as it is: processes may have it mapped.

    Args:
        bundle: the bundle; gets a folder.
        precision: as ``load`` takes it.
        progress: told of a wait for another command.

    Returns:
        The folder, ``prepacked/GRAPH``; about 1.7 times as large as the weights.

    Raises:
        BundleError: the bundle is damaged, cannot be written to, or has no such graph.
        InputError: the precision needs a GPU, or the graph is INT8, whose packed weights ONNX Runtime cannot load.
        BackendError: ONNX Runtime refuses the graph, or answers otherwise with what it packed.
    """
    from mbexport.disk.claims import claimed  # a runtime only reads

    with claimed(bundle, progress):
        return _prepack(bundle, precision)


def _prepack(bundle: Path, precision: str) -> Path:
    from mbexport.disk.writing import cannot_write, check_space, new_directory

    manifest = manifests.read(bundle)
    manifests.check_files(bundle, manifest)
    graph = cpu_graph(bundle, manifest, precision)
    if graph.needs_gate:
        raise InputError(
            f"{bundle / graph.file} is {graph.precision}, and ONNX Runtime crashes on packed weights of that; "
            "pack the other graph with --precision fp32, for load(..., precision='fp32')"
        )
    folder = folder_of(bundle, graph)
    try:
        if find_prepacked(bundle, manifest, graph)[0] is None:
            # ONNX Runtime does not say that a disk is full.
            check_space(bundle, folder, 2 * sum(file.bytes for file in weights_of(bundle, manifest, graph)))
            with new_directory(folder, replace=True) as directory:
                _write(bundle / graph.file, directory / file_name(graph), as_written=graph.fused)
                record = _made_for(bundle, manifest, graph) | {"bytes": _sizes(directory)}
                record["sha256"] = {name: sha256(directory / name) for name in record["bytes"]}
                write_atomically(directory / RECORD, to_json(record) + "\n")
    except OSError as cause:
        raise cannot_write(bundle, cause) from cause
    return folder


def _write(graph: Path, packed: Path, *, as_written: bool) -> None:
    """Have ONNX Runtime write ``packed`` and its data; it must answer as ``graph`` does."""
    check_external_data(graph, BundleError)
    options = session_options(as_written=as_written)
    options.optimized_model_filepath = str(packed)
    for key, value in {
        "optimized_model_external_initializers_file_name": f"{packed.name}_data",
        "optimized_model_external_initializers_min_size_in_bytes": LEAST_BYTES,
        "save_external_prepacked_constant_initializers": "1",
    }.items():
        options.add_session_config_entry(f"session.{key}", value)
    try:
        onnxruntime.InferenceSession(str(graph), options, providers=[CPU])
    except Exception as cause:  # onnxruntime's errors share no public base class
        raise BackendError(f"{graph} cannot be packed by ONNX Runtime {onnxruntime.__version__}: {cause}") from cause
    ids = np.arange(1, 20, dtype=np.int64)[None]
    inputs, places = (ids, np.ones_like(ids)), np.arange(ids.size)
    plain = OnnxRuntimeBackend(graph, 1, as_written=as_written).run(*inputs, places)
    mapped = OnnxRuntimeBackend(packed, 1, as_written=True).run(*inputs, places)
    if not all(np.array_equal(plain[name], mapped[name]) for name in plain):
        raise BackendError(f"ONNX Runtime {onnxruntime.__version__} answers otherwise with what it packed of {graph}")


def file_name(graph: Graph) -> str:
    """Of the graph with packed weights."""
    return f"{PurePosixPath(graph.file).stem}_prepacked.onnx"


def folder_of(bundle: Path, graph: Graph) -> Path:
    """Where the packed weights of a graph lie, if it has some."""
    return bundle / FOLDER / PurePosixPath(graph.file).stem


def find_prepacked(bundle: Path, manifest: Manifest, graph: Graph) -> tuple[Path | None, str | None]:
    """The file to load in the place of a graph, and why what is there is of no use here; None where there is none."""
    folder = folder_of(bundle, graph)
    if graph.needs_gate or not (folder / RECORD).is_file():
        return None, None
    try:
        record = read_json(folder / RECORD, BundleError)
    except BundleError as cause:
        return None, str(cause)
    for what, here in _made_for(bundle, manifest, graph).items():
        if record.get(what) != here:
            return None, f"{folder} was made for {what} {record.get(what)!r:.80}, here it is {here!r:.80}"
    if record.get("bytes") != _sizes(folder):
        return None, f"{folder} is incomplete"
    return folder / file_name(graph), None


def wrong_prepacked(bundle: Path) -> list[str]:
    """What is wrong with packed weights, whose digests stand beside them and not in the manifest: a sentence a file."""
    faults = []
    for folder in sorted((bundle / FOLDER).iterdir()) if (bundle / FOLDER).is_dir() else ():
        try:
            known = read_json(folder / RECORD, BundleError).get("sha256")
            found = {name: sha256(folder / name) for name in _sizes(folder)}
        except (BundleError, OSError) as cause:
            faults.append(f"{folder.relative_to(bundle)}: {cause}")
            continue
        names = sorted(found) if not isinstance(known, dict) else sorted(known.keys() | found.keys())
        faults += [
            f"{(folder / name).relative_to(bundle)}: it is not what mbexport prepack wrote there"
            for name in names
            if not isinstance(known, dict) or known.get(name) != found.get(name)
        ]
    return faults


def _made_for(bundle: Path, manifest: Manifest, graph: Graph) -> dict[str, Any]:
    """What must be the same where packed weights are used."""
    weights = {file.file: file.sha256 for file in weights_of(bundle, manifest, graph)}
    return {
        "graph": graph.sha256,
        "weights": weights,
        "onnxruntime": onnxruntime.__version__,
        "cpu": cpu_kind(),
        "kernels": kernels().name,
    }


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if ".onnx" in path.name and path.is_file()}


def cpu_kind() -> str:
    """The CPU's architecture and a hash of what it says it can do, by which ONNX Runtime chooses how it packs."""
    abilities = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        with info.open(encoding="utf-8", errors="replace") as lines:  # of many cores: the first is enough
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in ("flags", "Features"):  # of x86-64, of ARM
                    abilities = " ".join(sorted(value.split()))
                    break
    return f"{platform.machine()} {hashlib.sha256(abilities.encode()).hexdigest()[:16]}"
