"""The FP32 weights of a bundle, for graphs that are made of them later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mbexport.errors import BundleError
from mbexport.manifest import Manifest


class StoredWeights(Mapping[str, npt.NDArray[np.float32]]):
    """The weights of a bundle's portable graph, read when they are asked for; constants in the graph are none.

    Args:
        bundle: the bundle.
        manifest: its manifest.

    Attributes:
        tensors: where they lie, by name.

    Raises:
        BundleError: there is no portable graph.
    """

    def __init__(self, bundle: Path, manifest: Manifest) -> None:
        graphs = (graph for graph in manifest.graphs if graph.dialect == "portable" and not graph.packed)
        portable = next(graphs, None)
        if portable is None:
            raise BundleError(f"{bundle} holds no portable graph, whose weights are needed; export again")
        self.tensors = external_tensors(bundle / portable.file)

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        return self.tensors[name].numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def external_tensors(graph: Path) -> dict[str, ir.ExternalTensor]:
    """The tensors of a graph file that lie beside it, by name."""
    initializers = ir.load(graph).graph.initializers
    values = {name: value.const_value for name, value in initializers.items()}
    return {name: tensor for name, tensor in values.items() if isinstance(tensor, ir.ExternalTensor)}
