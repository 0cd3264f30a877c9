"""``load(bundle)``: one object that takes texts and gives answers."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbexport import manifest as manifests
from mbexport.errors import BundleError, InputError
from mbexport.manifest import Graph, Manifest
from mbexport.runtime.backends.ort import OnnxRuntimeBackend
from mbexport.runtime.heads import FloatArray, classification, pool
from mbexport.runtime.schedule import group_by_length
from mbexport.runtime.text import Text, TextEncoder

DEVICES = ("auto", "cpu")


class TruncationWarning(UserWarning):
    """Texts were longer than the model's max_length, and were cut."""


class Model:
    """A loaded bundle; made by :func:`load`. Safe to call from several threads.

    Attributes:
        manifest: the bundle's manifest.
        description: the file, runtime and provider really in use.
        truncated: how many texts were cut to ``manifest.max_length`` tokens so far.
    """

    def __init__(self, manifest: Manifest, encoder: TextEncoder, backend: OnnxRuntimeBackend) -> None:
        self.manifest = manifest
        self.description = backend.description
        self.truncated = 0
        self._encoder = encoder
        self._backend = backend
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[Text]) -> list[Any]:
        """One answer per text, in order.

        Args:
            texts: each a str, or a pair of str for cross-encoders.

        Returns:
            For text classification ``{"label", "score"}``, with ``"scores"`` by label where
            labels do not exclude one another; for a bare encoder a float32 vector [hidden].

        Raises:
            InputError: an item is no text.
            BackendError: the forward pass failed.
        """
        if self.manifest.task == "text-classification":
            return [classification(row, self.manifest) for row in self.logits(texts)]
        return list(self.embed(texts))

    def logits(self, texts: Sequence[Text]) -> FloatArray:
        """Raw outputs of the classifier, float32 [texts, labels].

        Raises:
            InputError: the model has no classifier, or an item is no text.
            BackendError: the forward pass failed.
        """
        if self.manifest.task != "text-classification":
            raise InputError(f"a {self.manifest.task} bundle has no logits; use embed()")
        return self._run(texts, "logits", lambda values: values)

    def embed(self, texts: Sequence[Text]) -> FloatArray:
        """One vector per text, float32 [texts, hidden], pooled as the manifest says.

        Raises:
            InputError: the model is a classifier, or an item is no text.
            BackendError: the forward pass failed.
        """
        if self.manifest.task != "feature-extraction":
            raise InputError(f"a {self.manifest.task} bundle has no embeddings; call the model, or use logits()")
        pooling = str(self.manifest.pooling)
        return self._run(texts, "last_hidden_state", lambda hidden: pool(hidden, pooling))

    def _run(self, texts: Sequence[Text], output: str, reduce: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """``reduce(output)`` of each text, [texts, width], in order; texts of one length run together."""
        if isinstance(texts, str):
            raise InputError("texts is one str, expected a list of texts: [text]")
        encoded = self._encoder.encode(texts)
        self._count_truncated(sum(item.truncated for item in encoded), len(encoded))
        rows: list[FloatArray] = [np.empty(0, np.float32)] * len(encoded)
        for group in group_by_length([len(item.ids) for item in encoded]):
            ids = np.stack([encoded[number].ids for number in group])
            values = reduce(self._backend.run(ids, np.ones_like(ids))[output])
            for number, value in zip(group, values, strict=True):
                rows[number] = value
        return np.stack(rows) if rows else np.empty((0, self._backend.width(output)), np.float32)

    def _count_truncated(self, cut: int, total: int) -> None:
        with self._lock:
            first = cut > 0 and self.truncated == 0
            self.truncated += cut
        if first:
            warnings.warn(
                f"{cut} of {total} texts had more than {self.manifest.max_length} tokens and were cut; "
                "said once, counted in .truncated",
                TruncationWarning,
                stacklevel=4,
            )


def load(
    bundle: str | os.PathLike[str], device: str = "auto", precision: str = "auto", threads: int | None = None
) -> Model:
    """Load a bundle.

    Args:
        bundle: a directory that ``mbexport onnx`` wrote.
        device: ``auto`` or ``cpu``; other devices are refused, never replaced in silence.
        precision: ``auto`` or a precision that the bundle has, e.g. ``fp32``.
        threads: cores that one call uses; None leaves the choice to ONNX Runtime.

    Raises:
        BundleError: no bundle there, a file of it missing or cut short, no such precision.
        InputError: a device that this runtime does not run on.
        BackendError: ONNX Runtime refuses the graph.
    """
    if device not in DEVICES:
        raise InputError(f"device is {device!r}, this version runs on {' or '.join(DEVICES)}")
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}, expected 1 or more, or None")
    directory = Path(bundle)
    manifest = manifests.read(directory)
    graph = _choose_graph(directory, manifest, precision)
    manifests.check_files(directory, manifest)
    encoder = TextEncoder(directory / "tokenizer.json", manifest.max_length)
    return Model(manifest, encoder, OnnxRuntimeBackend(directory / graph.file, threads))


def _choose_graph(directory: Path, manifest: Manifest, precision: str) -> Graph:
    wanted = "fp32" if precision == "auto" else precision
    graphs = [graph for graph in manifest.graphs if graph.precision == wanted]
    if not graphs:
        have = ", ".join(sorted({graph.precision for graph in manifest.graphs})) or "none"
        raise BundleError(f"{directory} holds no {wanted} graph; it has {have}")
    return min(graphs, key=lambda graph: graph.dialect != "onnxruntime")
