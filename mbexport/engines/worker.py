"""A build in a process of its own: a job and a graph on standard input, JSON lines on standard output.

    {"done": N, "of": M, "what": "phase"}    while it builds
    {"built": {...}}  or  {"error": "..."}   at the end

The builder keeps memory that it took, and may end the process it is in; so it gets one. Its log goes
to standard error. RTX_SWITCH must be set as the job's builder says before this module is imported.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from polygraphy.backend.trt import CreateConfig, CreateNetwork, EngineBytesFromNetwork, Profile
from polygraphy.backend.trt.util import check_onnx_parser_errors, get_trt_logger
from polygraphy.logger import G_LOGGER

from mbexport.disk.writing import HashedFile
from mbexport.engines.job import RTX_SWITCH, Built, Job
from mbexport.options import BUILDER_MODULES
from mbexport.processes import one_line, peak_bytes
from mbexport.profiles import parse_profile

if TYPE_CHECKING:
    import tensorrt as trt  # TensorRT-RTX has the same interface, as far as it is used here
else:
    trt = import_module(BUILDER_MODULES["tensorrt-rtx" if os.environ.get(RTX_SWITCH) == "1" else "tensorrt"])

PARTS = 10_000  # of a whole build, in which progress is told


class Attention(Protocol):
    """TensorRT's IAttention, which the stubs of 10.13 do not have yet."""

    name: str
    decomposable: bool


class Progress(trt.IProgressMonitor):
    """Nested phases as one fraction: a phase fills the step of the one that it is in."""

    def __init__(self, answers: IO[str]) -> None:
        trt.IProgressMonitor.__init__(self)
        self._answers = answers
        self._phases: dict[str, list[int]] = {}  # steps done and in all, outermost first
        self._told = 0

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
        """See trt.IProgressMonitor."""
        self._phases[phase_name] = [0, max(1, num_steps)]

    def step_complete(self, phase_name: str, step: int) -> bool:
        """See trt.IProgressMonitor; False, which ends the build, where nobody listens any more."""
        if phase_name in self._phases:
            self._phases[phase_name][0] = min(step + 1, self._phases[phase_name][1])
        return self._tell(phase_name)

    def phase_finish(self, phase_name: str) -> None:
        """See trt.IProgressMonitor."""
        self._phases.pop(phase_name, None)

    def _tell(self, phase: str) -> bool:
        fraction, width = 0.0, 1.0
        for done, steps in self._phases.values():
            width /= steps
            fraction += done * width
        self._told = max(self._told, min(PARTS, int(PARTS * fraction)))
        try:
            answer(self._answers, done=self._told, of=PARTS, what=phase)
        except BrokenPipeError:
            return False
        return True


def answer(answers: IO[str], **content: Any) -> None:
    """One JSON line to the process that asked."""
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def build(job: Job, model: bytes, answers: IO[str]) -> Built:
    """Parse, build, write the engine's file; the same for both builders but for the marked lines.

    Args:
        job: what to build.
        model: the serialized graph.
        answers: gets the progress.
    """
    started = time.perf_counter()
    # From TensorRT 11 on every network is strongly typed, and the flag may be gone.
    typed = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    builder, network = CreateNetwork(strongly_typed=typed)()
    parser = trt.OnnxParser(network, get_trt_logger())
    check_onnx_parser_errors(parser, parser.parse(model, job.graph))  # weights are found beside job.graph
    attention = list(attention_layers(network))
    for layer in attention:
        layer.decomposable = layer.name in job.decomposable
    options: dict[str, Any] = {"profiles": [_profile(text, network) for text in job.profiles]}
    options["progress_monitor"] = Progress(answers)
    if job.workspace is not None:
        options["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: job.workspace}
    if job.target is not None:  # TensorRT-RTX: for a GPU that is not here
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        config = CreateConfigRTX(compute_capabilities=[job.target], **options)
    else:  # TensorRT: for the GPU at hand, by timing kernels on it
        cache = job.timing_cache
        config = CreateConfig(load_timing_cache=cache if cache and Path(cache).exists() else None, **options)
    engine = EngineBytesFromNetwork((builder, network, parser), config=config, save_timing_cache=job.timing_cache)()
    seconds = time.perf_counter() - started
    with HashedFile(Path(job.engine)) as file:
        file.write(memoryview(engine))
        digest = file.sha256()
    names = tuple(layer.name for layer in attention)
    return Built(trt.__version__, network.num_layers, names, file.bytes, digest, seconds, peak_bytes())


def attention_layers(network: trt.INetworkDefinition) -> Iterator[Attention]:
    """The attention layers of a parsed network, in its order."""
    kind = getattr(trt.LayerType, "ATTENTION_OUTPUT", None)  # TensorRT before 10.14 has none
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        if kind is not None and layer.type == kind:
            # A layer comes as ILayer; TensorRT's bindings cast by assigning the class.
            layer.__class__ = trt.IAttentionOutputLayer  # type: ignore[attr-defined]  # not in the stubs of 10.13
            yield cast("Attention", layer.attention)  # type: ignore[attr-defined]


def _profile(text: str, network: trt.INetworkDefinition) -> Any:
    """Every input is [batch, sequence]."""
    profile, shapes = Profile(), parse_profile(text)
    for number in range(network.num_inputs):
        profile.add(network.get_input(number).name, shapes.smallest, shapes.fastest, shapes.largest)
    return profile


def main() -> None:
    """Build what standard input says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked ends this one
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print does not mix with the answers
    G_LOGGER.module_severity = G_LOGGER.VERBOSE  # TensorRT's notes on memory, too
    job = json.loads(sys.stdin.buffer.readline())
    job = {key: tuple(value) if isinstance(value, list) else value for key, value in job.items()}
    try:
        answer(answers, built=asdict(build(Job(**job), sys.stdin.buffer.read(), answers)))
    except Exception as error:
        answer(answers, error=one_line(error, 1000))


if __name__ == "__main__":
    main()
