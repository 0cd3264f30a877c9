"""What one build needs and what it answers: the words between the process that asks and the one that builds."""

from __future__ import annotations

from dataclasses import dataclass

RTX_SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"  # read once, when Polygraphy is imported


@dataclass(frozen=True)
class Job:
    """One build.

    Attributes:
        builder: a key of BUILDER_MODULES.
        target: compute capability, major and minor, to build for without a GPU; None for the GPU at hand.
        graph: the ONNX file that the weights lie beside; the graph itself follows the job.
        profiles: as ``mbexport.profiles`` writes them.
        decomposable: names of Attention nodes that may be built of several kernels.
        workspace: most bytes of scratch memory that a kernel may take; None for the builder's default.
        timing_cache: a file to read timings from and add them to; None for none.
        engine: the file to write.
    """

    builder: str
    target: tuple[int, int] | None
    graph: str
    profiles: tuple[str, ...]
    decomposable: tuple[str, ...]
    workspace: int | None
    timing_cache: str | None
    engine: str


@dataclass(frozen=True)
class Built:
    """What a build made.

    Attributes:
        version: the builder's.
        layers: how many the parsed network has.
        attention: names of the Attention nodes that the parser made attention layers of.
        bytes: of the engine.
        sha256: of the engine.
        seconds: from the parser's start to the serialized engine.
        peak_bytes: most memory of the process; None where the system does not say.
    """

    version: str
    layers: int
    attention: tuple[str, ...]
    bytes: int
    sha256: str
    seconds: float
    peak_bytes: int | None
