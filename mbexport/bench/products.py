"""The machine's matrix-product rate, by ONNX Runtime, for the arithmetic floor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ROWS = 512  # tokens: enough that the weights' way from memory does not decide
FLOAT, IR_VERSION, OPSET = 1, 9, 17


class MatrixProducts:
    """One ONNX Runtime session with a constant-weight MatMul for each shape of a layer.

    Args:
        shapes: [inputs, outputs] of each product; its left side is [ROWS, inputs].
        threads: cores to use.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        random = np.random.default_rng(0)
        weights = [random.standard_normal(shape, dtype=np.float32) for shape in shapes]
        self._session = onnxruntime.InferenceSession(matmul_model(weights), options, providers=["CPUExecutionProvider"])
        self._feed = {f"x{n}": random.standard_normal((ROWS, shape[0]), np.float32) for n, shape in enumerate(shapes)}
        self.multiply_adds = sum(ROWS * inputs * outputs for inputs, outputs in shapes)

    def run(self) -> list[npt.NDArray[np.float32]]:
        """All products once, [ROWS, outputs] each."""
        results: list[npt.NDArray[np.float32]] = self._session.run(None, self._feed)
        return results


def matmul_model(weights: Sequence[npt.NDArray[np.float32]]) -> bytes:
    """An ONNX model of y{n} = MatMul(x{n}, weights[n]); written by hand, for the runtime does not bring onnx.

    The numbers are the field numbers of onnx.proto.
    """
    graph = b""
    for n in range(len(weights)):
        names = _bytes(1, f"x{n}") + _bytes(1, f"w{n}") + _bytes(2, f"y{n}")
        graph += _bytes(1, names + _bytes(4, "MatMul"))  # NodeProto
    graph += _bytes(2, "matrix_products")
    for n, weight in enumerate(weights):
        dims = b"".join(_number(1, size) for size in weight.shape)
        graph += _bytes(5, dims + _number(2, FLOAT) + _bytes(8, f"w{n}") + _bytes(9, weight.tobytes()))  # TensorProto
    for n, weight in enumerate(weights):
        graph += _bytes(11, _value(f"x{n}", (ROWS, weight.shape[0])))
    for n, weight in enumerate(weights):
        graph += _bytes(12, _value(f"y{n}", (ROWS, weight.shape[1])))
    return _number(1, IR_VERSION) + _bytes(7, graph) + _bytes(8, _number(2, OPSET))


def _value(name: str, shape: tuple[int, int]) -> bytes:
    """A ValueInfoProto: a float tensor of a fixed shape."""
    dims = b"".join(_bytes(1, _number(1, size)) for size in shape)
    return _bytes(1, name) + _bytes(2, _bytes(1, _number(1, FLOAT) + _bytes(2, dims)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(raw)) + raw


def _varint(value: int) -> bytes:
    """A protobuf varint: seven bits a byte, the lowest first."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
