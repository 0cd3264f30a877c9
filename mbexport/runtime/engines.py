"""Which of a bundle's engines fit this machine, told from the manifest, before TensorRT is touched."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mbexport.driver import Device, names_model
from mbexport.errors import BundleError
from mbexport.manifest import Engine, Manifest
from mbexport.options import QUANTIZED
from mbexport.profiles import parse_profiles
from mbexport.runtime.graphs import doubt

# What precision="auto" takes, by preference: INT8 and FP8 only where their quality gate passed. The order is that
# of the speeds that NVIDIA publishes for its tensor cores; mbexport has measured none of it.
AUTOMATIC = ("int8", "fp8", "fp16", "bf16", "fp32")
# By builder, the distributions that a module's version may be recorded under.
DISTRIBUTIONS = {
    "tensorrt-rtx": ("tensorrt_rtx",),
    "tensorrt": ("tensorrt", "tensorrt_cu13", "tensorrt_cu12"),
}


@dataclass(frozen=True)
class Choice:
    """Engines that fit, best first, and why others do not."""

    fitting: tuple[Engine, ...]
    refused: tuple[str, ...]


def choose_engines(manifest: Manifest, gpu: Device, precision: str, installed: Callable[[str], str | None]) -> Choice:
    """A bundle's engines for a GPU.

    Args:
        manifest: of the bundle: its engines, and the graphs that they were built from.
        gpu: the GPU.
        precision: ``auto``, or the one precision wanted; engines of others are passed over unsaid.
        installed: from a builder to the version of its runtime, None where there is none.
    """
    wanted = [engine for engine in manifest.engines if precision in ("auto", engine.precision)]
    # Where the bundle has engines for this GPU, those for other machines are nothing to speak of.
    wanted = [engine for engine in wanted if _other_gpu(engine, gpu) is None] or wanted
    faults = {engine: _fault(engine, gpu, installed) for engine in wanted}
    if precision == "auto":
        faults = {engine: fault or _not_automatic(engine, manifest) for engine, fault in faults.items()}
    fitting = [engine for engine in wanted if faults[engine] is None]
    longest = min(manifest.max_length, max(map(_longest, fitting), default=0))
    fitting.sort(key=lambda engine: _rank(engine, gpu, manifest, longest))
    return Choice(tuple(fitting), tuple(f"{e.file} {fault}" for e, fault in faults.items() if fault is not None))


def _fault(engine: Engine, gpu: Device, installed: Callable[[str], str | None]) -> str | None:
    """Why an engine does not fit; None if it does."""
    other = _other_gpu(engine, gpu)
    if other is not None:
        return other
    if engine.builder not in DISTRIBUTIONS:
        return f"was built by {engine.builder!r}, this version runs engines of {' and '.join(DISTRIBUTIONS)}"
    version = installed(engine.builder)
    if version is None:
        return f"needs {engine.builder}, which is not installed: pip install {packages(engine)}"
    if not same_release(engine.builder_version, version):
        return (
            f"was built by {engine.builder} {engine.builder_version}, here is {version}, and an engine loads only in "
            f"the release that built it: pip install {packages(engine)}, or build it again with mbexport trt"
        )
    return None


def _not_automatic(engine: Engine, manifest: Manifest) -> str | None:
    """Why an engine is taken only by the name of its precision; None if ``auto`` takes it."""
    fault = doubt_of(engine, manifest)
    if fault is None and engine.precision in AUTOMATIC:
        return None
    but = f", and {fault}, so it" if fault else ", which"
    return f"is {engine.precision}{but} is taken only where asked for: precision={engine.precision!r}"


def doubt_of(engine: Engine, manifest: Manifest) -> str | None:
    """What speaks against an engine's quality; None where nothing does."""
    return doubt(manifest.origin(engine)) if engine.precision in QUANTIZED else None


def packages(engine: Engine) -> str:
    """For pip, all that running an engine needs; the extras are for building, and bring the exporter too."""
    version = f"{engine.builder}=={_release(engine.builder_version)}.*"
    return f"{shlex.quote(version)} cuda-bindings"  # a manifest holds what whoever made the bundle wrote


def _other_gpu(engine: Engine, gpu: Device) -> str | None:
    """What tells that an engine was built for another GPU; None if nothing does.

    TensorRT-RTX builds for a compute capability. TensorRT times kernels on the GPU at hand, and promises
    nothing of another model, even of the same compute capability: it may run slowly, or not at all.
    """
    if engine.compute_capability != gpu.compute_capability:
        return (
            f"is for {engine.gpu}, compute capability {engine.compute_capability}; "
            f"{gpu.name} has {gpu.compute_capability}"
        )
    if engine.builder == "tensorrt" and not names_model(engine.gpu, gpu.name):
        return (
            f"was built by tensorrt on {engine.gpu}, which is another model than {gpu.name}, and such an engine is "
            "for one model only: build one here with mbexport trt --gpu auto"
        )
    return None


def same_release(built: str, installed: str) -> bool:
    """Whether an engine built by one version loads in another: major, minor and patch agree.

    NVIDIA says of TensorRT-RTX that engines are not compatible between releases, and of TensorRT that
    an engine loads in the version that built it, unless built as version-compatible, which ours are not.
    The fourth number counts builds of one release.
    """
    return _release(built) == _release(installed)


def _release(version: str) -> str:
    return ".".join(version.split(".")[:3])


def _rank(engine: Engine, gpu: Device, manifest: Manifest, longest: int) -> tuple[int, ...]:
    """Smaller is better.

    By precision, built for this very model of GPU, tuned on a GPU, taking texts of ``longest`` tokens, of a graph that
    is still the bundle's, packed, and the longest texts.
    """
    order = AUTOMATIC.index(engine.precision) if engine.precision in AUTOMATIC else 0  # a named one has no others
    return (
        order, not names_model(engine.gpu, gpu.name), engine.builder != "tensorrt", _longest(engine) < longest,
        manifest.origin(engine) is None, not engine.packed, -_longest(engine),
    )  # fmt: skip


def _longest(engine: Engine) -> int:
    """Tokens of the longest text that an engine takes."""
    return max(profile.largest[1] for profile in parse_profiles(engine.profile))


def installed_version(builder: str) -> str | None:
    """Version of an installed TensorRT or TensorRT-RTX, from its package's record: neither is imported."""
    from importlib import metadata

    for distribution in DISTRIBUTIONS[builder]:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:  # noqa: PERF203 (three names at most)
            continue
    return None


def read_engine(bundle: Path, engine: Engine) -> bytes:
    """The bytes of an engine, checked against the manifest.

    An engine is native code to TensorRT, so none is loaded whose size or SHA-256 is another than the
    manifest's. What was hashed is what is returned: the file
    is not read again.

    Raises:
        BundleError: the file is missing, cut short or changed.
    """
    from hashlib import sha256

    path = bundle / engine.file
    found = path.stat().st_size if path.is_file() else 0
    if found != engine.bytes:
        raise BundleError(
            f"{path} has {found} bytes, the manifest says {engine.bytes}; copy the whole bundle, or build it again"
        )
    content = path.read_bytes()
    digest = sha256(content).hexdigest()
    if digest != engine.sha256:
        raise BundleError(
            f"{path} has the SHA-256 {digest}, the manifest says {engine.sha256}, so it is not loaded; "
            "copy the whole bundle, or build it again"
        )
    return content
