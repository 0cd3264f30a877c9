"""The FP32 weights of a bundle, for graphs that are made of them later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from mbexport.bundle.weights import stored_shapes
from mbexport.checkpoint.load import read_bundle_spec
from mbexport.disk.external import check_external_data
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
        BundleError: there is no portable graph, or one that does not fit config.json.
    """

    def __init__(self, bundle: Path, manifest: Manifest) -> None:
        graphs = (graph for graph in manifest.graphs if graph.dialect == "portable" and not graph.packed)
        portable = next(graphs, None)
        if portable is None:
            raise BundleError(f"{bundle} holds no portable graph, whose weights are needed; export again")
        self.tensors = external_tensors(bundle / portable.file)
        for name, shape in stored_shapes(read_bundle_spec(bundle, manifest)).items():
            found = self.tensors.get(name)
            if found is None or found.dtype != ir.DataType.FLOAT or tuple(found.shape) != shape:
                what = "is missing" if found is None else f"is {found.dtype.name} {list(found.shape)}"
                raise BundleError(
                    f"{bundle / portable.file}: the tensor {name} {what}, expected FLOAT {list(shape)} by config.json; "
                    "copy the whole bundle, or export again"
                )

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        return self.tensors[name].numpy()

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def external_tensors(graph: Path) -> dict[str, ir.ExternalTensor]:
    """The tensors of a graph file that lie beside it, by name.

    Raises:
        BundleError: the file is no graph, or names tensors in other places, or beyond the end of a file.
    """
    check_external_data(graph, BundleError)
    try:
        initializers = ir.load(graph).graph.initializers
    except Exception as cause:  # protobuf's and onnx_ir's have no root in common
        raise BundleError(f"{graph} cannot be read as an ONNX graph: {cause}; export again") from cause
    values = {name: value.const_value for name, value in initializers.items()}
    tensors = {name: tensor for name, tensor in values.items() if isinstance(tensor, ir.ExternalTensor)}
    for name, tensor in tensors.items():
        offset, file = tensor.offset or 0, Path(tensor.path)
        size = file.stat().st_size if file.is_file() else 0
        if not 0 <= offset <= offset + tensor.nbytes <= size:
            raise BundleError(
                f"{graph}: {name} is said to lie at byte {offset} of {tensor.location}, which has {size} bytes and not "
                f"the {tensor.nbytes} of the tensor there; copy the whole bundle, or export again"
            )
    return tensors
