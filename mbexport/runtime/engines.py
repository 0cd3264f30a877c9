"""Which of a bundle's engines fit this machine, told from the manifest, before TensorRT is touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mbexport.driver import Device
from mbexport.errors import BundleError
from mbexport.manifest import Engine
from mbexport.profiles import parse_profiles

# What precision="auto" takes, by preference. INT8 and FP8 cost quality, so they must be named.
AUTOMATIC = ("fp16", "bf16", "fp32")
EXTRAS = {"tensorrt-rtx": "trt", "tensorrt": "tensorrt"}
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


def choose_engines(
    engines: Sequence[Engine], gpu: Device, precision: str, installed: Callable[[str], str | None]
) -> Choice:
    """Engines for a GPU.

    Args:
        engines: of the manifest.
        gpu: the GPU.
        precision: ``auto``, or the one precision wanted; engines of others are passed over unsaid.
        installed: from a builder to the version of its runtime, None where there is none.
    """
    wanted = [engine for engine in engines if precision in ("auto", engine.precision)]
    # Where the bundle has engines for this GPU, those for other machines are nothing to speak of.
    wanted = [engine for engine in wanted if engine.compute_capability == gpu.compute_capability] or wanted
    faults = {engine: _fault(engine, gpu, precision, installed) for engine in wanted}
    fitting = sorted((engine for engine in wanted if faults[engine] is None), key=lambda engine: _rank(engine, gpu))
    return Choice(tuple(fitting), tuple(f"{e.file} {fault}" for e, fault in faults.items() if fault is not None))


def _fault(engine: Engine, gpu: Device, precision: str, installed: Callable[[str], str | None]) -> str | None:
    """Why an engine does not fit; None if it does."""
    if engine.compute_capability != gpu.compute_capability:
        return (
            f"is for {engine.gpu}, compute capability {engine.compute_capability}; "
            f"{gpu.name} has {gpu.compute_capability}"
        )
    if precision == "auto" and engine.precision not in AUTOMATIC:
        return f"is {engine.precision}, which is taken only where asked for: precision={engine.precision!r}"
    if engine.builder not in DISTRIBUTIONS:
        return f"was built by {engine.builder!r}, this version runs engines of {' and '.join(DISTRIBUTIONS)}"
    version = installed(engine.builder)
    if version is None:
        return f"needs {engine.builder}, which is not installed: pip install 'mbexport[{EXTRAS[engine.builder]}]'"
    if not same_release(engine.builder_version, version):
        return (
            f"was built by {engine.builder} {engine.builder_version}, here is {version}, and an engine loads only in "
            "the release that built it: install that, or build it again with mbexport trt"
        )
    return None


def same_release(built: str, installed: str) -> bool:
    """Whether an engine built by one version loads in another: major, minor and patch agree.

    NVIDIA says of TensorRT-RTX that engines are not compatible between releases, and of TensorRT that
    an engine loads in the version that built it, unless built as version-compatible, which ours are not.
    The fourth number counts builds of one release.
    """
    return built.split(".")[:3] == installed.split(".")[:3]


def _rank(engine: Engine, gpu: Device) -> tuple[int, ...]:
    """Smaller is better: precision, built for this very model of GPU, tuned on a GPU, the longest texts."""
    named = _letters(engine.gpu) in _letters(gpu.name)
    longest = max(profile.largest[1] for profile in parse_profiles(engine.profile))
    order = AUTOMATIC.index(engine.precision) if engine.precision in AUTOMATIC else 0  # a named one has no others
    return (order, not named, engine.builder != "tensorrt", -longest)


def _letters(name: str) -> str:
    """``rtx4090`` of ``RTX 4090``."""
    return "".join(character for character in name.lower() if character.isalnum())


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
    manifest's; of 300 MB that takes about 0.3 s. What was hashed is what is returned: the file
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
