"""Every name of TensorRT's and CUDA's that the runtime uses exists in the real modules."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mbexport.driver import find_gpu
from mbexport.errors import BackendError
from mbexport.runtime.backends import trt_api
from mbexport.runtime.backends.session import _logger
from mbexport.runtime.cuda import Cuda, CudaApi

CLASSES = {
    "IExecutionContext": trt_api.Context,
    "IRuntimeConfig": trt_api.RuntimeConfig,
    "ICudaEngine": trt_api.CudaEngine,
}
# Of the module, beside what its Protocol lists: values that are looked up in it.
VALUES = (
    "TensorIOMode.INPUT",
    "ExecutionContextAllocationStrategy.USER_MANAGED",
    "ILogger.ERROR",
    "ILogger.INTERNAL_ERROR",
    "ILogger.log",
    "Runtime.deserialize_cuda_engine",
)


def members(protocol: type) -> set[str]:
    names = set(vars(protocol)) | set(getattr(protocol, "__annotations__", {}))
    return {name for name in names if not name.startswith("_")}


def test_tensorrt_rtx() -> None:
    module = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    assert [name for name in members(trt_api.TensorRT) if not hasattr(module, name)] == []
    for name, protocol in CLASSES.items():
        assert members(protocol)
        assert [member for member in members(protocol) if not hasattr(getattr(module, name), member)] == []
    for path in (*VALUES, "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE", "IRuntimeConfig.cuda_graph_strategy"):
        found = module
        for part in path.split("."):
            found = getattr(found, part)


def test_what_tensorrt_rtx_says_of_errors_is_kept() -> None:
    module = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    faults: list[str] = []
    logger = _logger(module, faults)
    assert module.Runtime(logger).deserialize_cuda_engine(b"no engine" * 100) is None
    assert any("erializ" in fault for fault in faults)
    assert module.nptype(module.DataType.INT64) is np.int64
    assert module.nptype(module.DataType.FLOAT) is np.float32


def test_tensorrt_by_its_stubs() -> None:
    spec = find_spec("tensorrt_bindings")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    stubs = [path for folder in folders for path in Path(folder).glob("*.pyi")]
    if not stubs:
        pytest.skip("tensorrt-stubs is not installed")
    text = "\n".join(path.read_text("utf-8") for path in stubs)  # not all of it is valid Python
    known = {"": set(re.findall(r"^(?:class|def) (\w+)", text, re.MULTILINE)) | {"__version__"}}
    for block in re.split(r"^(?=class )", text, flags=re.MULTILINE)[1:]:
        name = re.findall(r"\w+", block)[1]
        known[name] = set(re.findall(r"^    (?:def )?(\w+)", block, re.MULTILINE))
    assert members(trt_api.TensorRT) <= known[""]
    for name, protocol in CLASSES.items():
        assert members(protocol) <= known[name]
    for path in VALUES:
        owner, name = path.split(".")
        assert name in known[owner], path


def test_cuda_bindings() -> None:
    module = pytest.importorskip("cuda.bindings.runtime", exc_type=ImportError)
    names = members(CudaApi)
    assert len(names) > 15
    assert [name for name in names if not hasattr(module, name)] == []
    assert module.cudaError_t.cudaSuccess.name == "cudaSuccess"
    assert module.cudaMemcpyKind.cudaMemcpyHostToDevice != module.cudaMemcpyKind.cudaMemcpyDeviceToHost
    assert int(module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal) == 1


def test_a_real_call_without_a_driver_is_a_backend_error() -> None:
    pytest.importorskip("cuda.bindings.runtime", exc_type=ImportError)
    try:
        find_gpu()
    except BackendError:
        with pytest.raises(BackendError, match=r"cudaMalloc( of 100 bytes)? failed(: | with cudaE)"):
            Cuda().allocate(100)
    else:
        pytest.skip("there is a GPU here")
