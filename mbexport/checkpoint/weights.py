"""Safetensors weights, read by contract: every expected tensor with its shape, no other."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mbexport.checkpoint.sentence_config import DenseSpec
from mbexport.checkpoint.spec import ModelSpec
from mbexport.errors import CheckpointError
from mbexport.files import is_plain_name, read_json, sha256

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOAT_TYPES = ("F32", "F16", "BF16")
COMPILED_PREFIX, WRAPPER_PREFIX = "_orig_mod.", "model."
EMBEDDINGS = "embeddings.tok_embeddings.weight"
MAX_NAMED, LONGEST_NAME = 5, 120  # tensors that one error line names, and characters of each
MOST_TENSORS = 2**16  # of a file: a model of 1,024 layers has 12,000

Shape = tuple[int, ...]
FloatArray = npt.NDArray[np.float32]


def expected_tensors(spec: ModelSpec) -> dict[str, Shape]:
    """Names and shapes of all tensors of a checkpoint of ``spec``.

    Names are transformers' own less the ``model.`` that wrappers of the bare model put
    before the encoder's.
    """
    hidden, inner = spec.hidden_size, spec.intermediate_size
    shapes: dict[str, Shape] = {EMBEDDINGS: (spec.vocab_size, hidden)}

    def linear(name: str, rows: int, columns: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = (hidden,)
        if spec.norm_bias:
            shapes[f"{name}.bias"] = (hidden,)

    norm("embeddings.norm")
    for layer in range(spec.num_layers):
        if layer:  # the first layer has no norm of its own: the embeddings' norm serves it
            norm(f"layers.{layer}.attn_norm")
        linear(f"layers.{layer}.attn.Wqkv", 3 * hidden, hidden, spec.attention_bias)
        linear(f"layers.{layer}.attn.Wo", hidden, hidden, spec.attention_bias)
        norm(f"layers.{layer}.mlp_norm")
        linear(f"layers.{layer}.mlp.Wi", 2 * inner, hidden, spec.mlp_bias)
        linear(f"layers.{layer}.mlp.Wo", hidden, inner, spec.mlp_bias)
    norm("final_norm")
    for step in spec.sentence.steps if spec.sentence else ():
        if isinstance(step, DenseSpec):
            linear(f"{step.folder}.linear", step.outputs, step.inputs, step.bias)
    if spec.head is not None:
        linear("head.dense", hidden, hidden, spec.head.bias)
        norm("head.norm")
        linear(spec.head.last_layer, spec.head.outputs, hidden, spec.head.last_bias)
        if spec.head.tied:  # the embedding matrix serves
            del shapes[f"{spec.head.last_layer}.weight"]
    return shapes


def is_linear(name: str, shape: Shape) -> bool:
    """Whether a tensor is the [out, in] matrix of a linear layer."""
    return len(shape) == 2 and name != EMBEDDINGS


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its file, its name there, its element type and shape."""

    file: Path
    stored_name: str
    dtype: str
    shape: Shape


class Weights:
    """The tensors of a checkpoint, by the names that :func:`expected_tensors` gives them.

    Args:
        directory: the checkpoint.

    Raises:
        CheckpointError: no safetensors file, a damaged one, or pickled weights only.
    """

    def __init__(self, directory: Path) -> None:
        self.notes: list[str] = []
        self.files = _weight_files(directory)
        self.further_files: list[Path] = []  # that given tensors came from
        self._tensors: dict[str, StoredTensor] = {}
        self._given: dict[str, FloatArray] = {}
        self._hash: Future[str] | None = None
        for file in self.files:
            for name, tensor in _read_header(file).items():
                self._add(self.canonical(name), tensor)
        if any(COMPILED_PREFIX in tensor.stored_name for tensor in self._tensors.values()):
            self.notes.append(f"tensor names carry {COMPILED_PREFIX!r} (saved under torch.compile): removed")

    @staticmethod
    def canonical(name: str) -> str:
        """A stored name as :func:`expected_tensors` has it."""
        return name.replace(COMPILED_PREFIX, "").removeprefix(WRAPPER_PREFIX)

    def names(self) -> list[str]:
        """All tensors there are."""
        return list(dict.fromkeys([*self._tensors, *self._given]))

    def dtype(self, name: str) -> str:
        """Element type of a tensor, as safetensors names it."""
        return "F32" if name in self._given else self._tensors[name].dtype

    def give(self, name: str, array: FloatArray) -> None:
        """Take a tensor from elsewhere; it stands in for a stored one of its name."""
        self._given[name] = array

    def forget(self, name: str) -> None:
        """Leave a tensor out of all that follows."""
        self._tensors.pop(name, None)
        self._given.pop(name, None)

    def _add(self, name: str, tensor: StoredTensor) -> None:
        if name in self._tensors:
            raise CheckpointError(f"{tensor.file} holds {name} twice; save the checkpoint again")
        self._tensors[name] = tensor

    def shape(self, name: str) -> Shape | None:
        """Shape of a tensor, None where there is none of that name."""
        if name in self._given:
            return self._given[name].shape
        tensor = self._tensors.get(name)
        return None if tensor is None else tensor.shape

    def drop_tied(self, name: str, twin: str) -> None:
        """Forget a tensor that a checkpoint stores although another one is said to serve for it.

        Raises:
            CheckpointError: they differ, so the one that would be used is not certain.
        """
        if twin in self._given:
            raise CheckpointError(
                f"{twin} comes from an adapter and {name} is said to be tied to it, which PEFT leaves untied; "
                "merge the adapter with PEFT's merge_and_unload and save the result"
            )
        if name not in self.names():
            return
        arrays = dict(self.read([name, twin]))
        if not np.array_equal(arrays[name], arrays[twin]):
            raise CheckpointError(
                f"{self.files[0].parent}: config.json ties {name} to {twin}, but they differ; "
                "set tie_word_embeddings to false in config.json, or save the model again"
            )
        self.forget(name)

    def require(self, expected: dict[str, Shape]) -> None:
        """Check names, shapes and element types, all at once.

        Raises:
            CheckpointError: one line with every kind of difference.
        """
        found = {name: self.shape(name) for name in self.names()}
        wrong_shape = [
            f"{name} {list(found[name] or ())} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ]
        types = {name: self.dtype(name) for name in found if name in expected}
        faults = [
            _fault("missing", [name for name in expected if name not in found]),
            _fault("unexpected", [name for name in found if name not in expected]),
            _fault("of another shape", wrong_shape),
            _wrong_types(types),
        ]
        if any(faults):
            raise CheckpointError(
                f"{self.files[0].parent}: the weights do not fit config.json: {'; '.join(f for f in faults if f)}"
            )

    def read(self, names: list[str]) -> Iterator[tuple[str, FloatArray]]:
        """The named tensors as float32, one at a time, given ones first, each file opened once.

        Raises:
            CheckpointError: a tensor holds NaN or infinity.
        """
        from safetensors import safe_open

        yield from ((name, self._given[name]) for name in names if name in self._given)
        for file in self.files:
            with safe_open(file, framework="np") as stream:
                for name in names:
                    tensor = self._tensors.get(name)
                    if tensor is not None and tensor.file == file and name not in self._given:
                        yield name, _finite_float32(file, name, stream.get_tensor(tensor.stored_name))

    def fp32_bytes(self) -> int:
        """Bytes of all tensors as float32."""
        return 4 * sum(math.prod(self.shape(name) or ()) for name in self.names())

    def begin_hash(self) -> Future[str]:
        """Compute :meth:`sha256` on another core from now on."""
        if self._hash is None:
            worker = ThreadPoolExecutor(1)
            self._hash = worker.submit(sha256, *self.files, *self.further_files)
            worker.shutdown(wait=False)  # the thread ends with its work
        return self._hash

    def sha256(self) -> str:
        """SHA-256 over all files that weights come from: the model's in the order of their names, then others."""
        return self.begin_hash().result()


def read_tensors(file: Path) -> dict[str, FloatArray]:
    """All tensors of a small safetensors file as float32, by their stored names.

    Raises:
        CheckpointError: the file is damaged, or a tensor is no floating point, or holds NaN or infinity.
    """
    from safetensors import safe_open

    names = _read_header(file)
    if fault := _wrong_types({name: tensor.dtype for name, tensor in names.items()}):
        raise CheckpointError(f"{file}: {fault}")
    with safe_open(file, framework="np") as stream:
        return {name: _finite_float32(file, name, stream.get_tensor(name)) for name in names}


def _finite_float32(file: Path, name: str, stored: npt.NDArray[Any]) -> FloatArray:
    array = stored.astype(np.float32, copy=False)
    if not is_finite(array):
        raise CheckpointError(f"{file}: {name} holds NaN or infinity; the checkpoint is damaged")
    return array


def is_finite(array: FloatArray) -> bool:
    """Whether all values are numbers, told by their sum: in float64 that of finite float32 values cannot overflow."""
    with np.errstate(invalid="ignore"):  # of both infinities
        return bool(np.isfinite(np.sum(array, dtype=np.float64)))


def _fault(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"{len(names)} {kind}: {', '.join(name[:LONGEST_NAME] for name in names[:MAX_NAMED])}{more}"


def _wrong_types(types: dict[str, str]) -> str:
    wrong = [f"{name} {dtype}" for name, dtype in types.items() if dtype not in FLOAT_TYPES]
    return _fault(f"of a type other than {', '.join(FLOAT_TYPES)}", wrong)


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors files: the one, or those that the index names."""
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if (directory / INDEX).is_file():
        return _sharded_files(directory)
    pickled = [name for name in ("pytorch_model.bin", "pytorch_model.bin.index.json") if (directory / name).exists()]
    if pickled:
        raise CheckpointError(
            f"{directory} holds {pickled[0]} only: a pickle, which can run code and is never opened here. If you trust "
            "it, load it once in PyTorch with the class that config.json names and save it again: "
            f"ModernBertForSequenceClassification.from_pretrained({str(directory)!r}).save_pretrained(NEW_DIRECTORY)"
        )
    raise CheckpointError(f"{directory} holds no {WEIGHTS} and no {INDEX}; save the model with save_pretrained")


def _sharded_files(directory: Path) -> list[Path]:
    index = directory / INDEX
    weight_map = read_json(index, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; save the checkpoint again")
    files = []
    for name in sorted({str(name) for name in weight_map.values()}):
        if not is_plain_name(name):
            raise CheckpointError(f"{index} names the file {name!r:.80}, which lies outside the checkpoint")
        if not os.path.isfile(directory / name):  # noqa: PTH113 (False, not an error, for a name too long)
            raise CheckpointError(f"{index} names {name:.80}, which is missing")
        files.append(directory / name)
    return files


def _read_header(file: Path) -> dict[str, StoredTensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as stream:
            names = stream.keys()
            if len(names) > MOST_TENSORS:
                raise CheckpointError(f"{file} holds {len(names)} tensors, expected at most {MOST_TENSORS}")
            slices = {name: stream.get_slice(name) for name in names}
            return {
                name: StoredTensor(file, name, part.get_dtype(), tuple(part.get_shape()))
                for name, part in slices.items()
            }
    except (SafetensorError, OSError) as cause:
        raise CheckpointError(
            f"{file} is no readable safetensors file (truncated or damaged): {cause}; copy or save it again"
        ) from cause
