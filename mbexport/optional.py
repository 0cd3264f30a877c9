"""Optional packages: the one place that says which extra brings which module."""

from __future__ import annotations

from importlib.util import find_spec

from mbexport.errors import MissingExtraError

EXTRA_OF = {
    "onnx_ir": "export",
    "safetensors": "export",
    "ml_dtypes": "export",
    "torch": "validate",
    "transformers": "validate",
    "sentence_transformers": "sentence",
    "matplotlib": "bench",
    "openvino": "bench",
    "tensorrt_rtx": "trt",
    "polygraphy": "trt",
    "cuda.bindings": "trt",
    "tensorrt": "tensorrt",
    "prometheus_client": "serve",
    "fastapi": "serve",
    "uvicorn": "serve",
}


def installed(module: str) -> bool:
    """Whether a module can be imported; a folder of type stubs alone (``tensorrt-stubs``) cannot."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # of the package that the module is in
        return False
    return spec is not None and spec.origin is not None


def require(*modules: str, packages: str | None = None) -> None:
    """Check, without importing them, that optional modules are installed.

    Args:
        modules: their names.
        packages: for pip, where the extra would bring more than is needed.

    Raises:
        MissingExtraError: names the missing modules and the extra, or the packages, to install.
    """
    missing = [module for module in modules if not installed(module)]
    if missing:
        extras = ",".join(sorted({EXTRA_OF[module] for module in missing}))
        install = packages or f"'mbexport[{extras}]'"
        raise MissingExtraError(f"this needs {', '.join(missing)}, which is not installed: pip install {install}")
