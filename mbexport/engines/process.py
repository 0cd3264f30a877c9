"""The asking side of a build's own process: starts it, shows its progress, reads its log."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Any, cast

from mbexport.engines.job import RTX_SWITCH, Built, Job
from mbexport.errors import EngineError
from mbexport.files import Progress
from mbexport.processes import last_words, module_command

NOT_FUSED = "Attention operation was not supported by a dedicated kernel"
_VOLUME = "checkVolume"  # an assertion on the number of elements of a tensor
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")
_ERROR = re.compile(r"^\[[E!]\] +(.*)$", re.MULTILINE)


class NotFusedError(EngineError):
    """There is an attention layer without a fused kernel, and it was not allowed to be built of several."""


@dataclass(frozen=True)
class Memory:
    """GPU memory of an engine in bytes: activations by profile, in their order, and weights; None where not said."""

    activations: tuple[int | None, ...]
    weights: int | None


def run(job: Job, model: bytes, progress: Progress) -> tuple[Built, Memory]:
    """Build in a process of its own, which does not outlive this call.

    Args:
        job: what to build.
        model: the serialized graph.
        progress: called as the builder goes on.

    Raises:
        NotFusedError: an attention layer has no fused kernel.
        EngineError: the builder failed otherwise; its reason in one line.
    """
    with _temporary_files(job, model) as (request, log):
        with _started(job, request, log) as process:
            try:
                end = _listen(cast("IO[bytes]", process.stdout), progress)
            finally:
                process.kill()  # it has answered, or nobody waits for it any more
        log.seek(0)
        said = log.read().decode("utf-8", "replace")
    if "built" not in end:
        if NOT_FUSED in said:
            raise NotFusedError(NOT_FUSED)
        raise EngineError(f"{job.builder} could not build the engine: {reason(process.returncode, said, end)}")
    fields = end["built"] | {"attention": tuple(end["built"]["attention"])}
    return Built(**fields), memory(said, len(job.profiles))


@contextmanager
def _temporary_files(job: Job, model: bytes) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """What the process reads, and what it will say."""
    with ExitStack() as stack:
        try:
            request, log = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
            request.write(json.dumps(asdict(job)).encode() + b"\n" + model)
            request.seek(0)
        except OSError as cause:
            raise EngineError(
                f"no temporary file for {len(model)} bytes of graph can be written: {cause.strerror or cause}; "
                "make room, or name another folder in TMPDIR"
            ) from cause
        yield request, log


def _started(job: Job, request: IO[bytes], log: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = os.environ | {RTX_SWITCH: "1" if job.builder == "tensorrt-rtx" else "0"}
    command = module_command("mbexport.engines.worker")
    try:
        return subprocess.Popen(  # noqa: S603 (its words are ours)
            command, stdin=request, stdout=subprocess.PIPE, stderr=log, env=environment
        )
    except OSError as cause:
        raise EngineError(f"no process for {job.builder} can be started: {cause.strerror or cause}") from cause


def _listen(answers: IO[bytes], progress: Progress) -> dict[str, Any]:
    """The last answer; empty where the process ended without one."""
    for line in answers:
        try:
            content = json.loads(line)
        except ValueError:  # it died while it wrote
            break
        if "done" not in content:
            return cast("dict[str, Any]", content)
        progress(content["done"], content["of"], content["what"])
    return {}


def memory(log: str, profiles: int) -> Memory:
    """What the builder's log says about memory; it is the only source without a driver.

    Args:
        log: all of it.
        profiles: how many there are; a log that does not name as many memories is not understood.
    """
    activations, weights = _ACTIVATIONS.findall(log), _WEIGHTS.findall(log)
    understood = tuple(map(int, activations)) if len(activations) == profiles else (None,) * profiles
    return Memory(understood, int(weights[-1]) if weights else None)


def reason(code: int, log: str, end: dict[str, Any]) -> str:
    """Why a build failed, in one line: the builder's last error, else what the process said last."""
    if _VOLUME in log:
        return "a tensor could have more than 2^31 elements at a profile's largest shape; take a smaller one"
    if "error" in end and not end["error"].startswith("PolygraphyException"):  # which says less than the log
        return str(end["error"])
    # Without a GPU, that there is none is among the errors, and never the reason.
    errors = [text for text in _ERROR.findall(log) if "Cuda Runtime" not in text]
    told = [text for text in errors if not text.startswith(("Invalid Engine", "Could not parse ONNX"))]
    return " ".join((told or errors)[-1].split())[:400] if errors else last_words(code, log)
