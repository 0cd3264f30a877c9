"""The runtime as a Ray Serve deployment: serve run --app-dir examples/ray serve_app:build bundle=/models/topics.

POST /predict with {"inputs": text or [text, ...]} answers {"predictions": [...]}; an error is
{"error": {"type", "message"}}. One model a replica; texts of all its callers run in common batches.
"""

# No `from __future__ import annotations` here: Serve looks at the builder's annotation, and wants a class.
import asyncio
import json
import logging
import math
import os
import re
import sys
from typing import Any, Literal

import ray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve.config import AutoscalingConfig
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import Self  # pydantic needs it, too

from mbexport.errors import BackendError, BusyError, ClosedError, DeadlineError, InputError, MbexportError
from mbexport.runtime import Batcher, load
from mbexport.runtime.batcher import WAITING_BATCHES
from mbexport.runtime.plain import plain

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # replicas elsewhere have no such module

KINDS = {  # status and type, the names those of examples/service
    InputError: (422, "invalid_texts"),
    BusyError: (429, "busy"),
    DeadlineError: (504, "deadline"),
    ClosedError: (503, "closing"),
    BackendError: (503, "backend"),
}
CHECK_SECONDS = 20.0  # for a forward pass of one token, between batches
DRAIN_SECONDS, CLOSE_SECONDS = 30.0, 5.0  # for requests to be answered; then for the batcher to end
log = logging.getLogger("ray.serve")
BUSY_GPU = 32  # requests that keep one busy


class Arguments(BaseModel):
    """What ``serve run`` takes as name=value, a config file under ``args``.

    Attributes:
        bundle: a directory that every node has at this path.
        device: ``cpu`` or ``cuda``; another one than asked for is refused.
        precision: as ``load`` takes it.
        threads: cores of a replica: what Ray reserves for it, and what the model uses.
        min_replicas: kept while there is nothing to do.
        max_replicas: that Serve may start.
        target_ongoing_requests: of a replica, by which Serve scales; None: 2 a core, or 32 of a GPU.
        max_ongoing_requests: that a replica takes; None: 4 times the target.
        max_queued_requests: that wait in each proxy while all replicas have theirs; more get 503.
        max_waiting: texts that wait in a replica; more get 429. At least max_texts, or a request could never be taken.
        max_waiting_tokens: that wait in a replica; None: what one request of the longest texts has.
        max_delay: seconds that a batch may wait to fill while the device is idle.
        timeout: seconds until an answer, else 504.
        max_texts: of a request.
        max_body: bytes of a request.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    bundle: str
    device: Literal["cpu", "cuda"] = "cpu"
    precision: str = "auto"
    threads: int = Field(2, ge=1)
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1)
    target_ongoing_requests: float | None = Field(None, gt=0)
    max_ongoing_requests: int | None = Field(None, ge=1)
    max_queued_requests: int = Field(128, ge=1)
    max_waiting: int = Field(1024, ge=1)
    max_waiting_tokens: int | None = Field(None, ge=1)
    max_delay: float = Field(0.0, ge=0)
    timeout: float = Field(30.0, gt=0)
    max_texts: int = Field(64, ge=1)
    max_body: int = Field(2_000_000, ge=1)

    @model_validator(mode="after")
    def _can_take_a_request(self) -> Self:
        if self.max_waiting < self.max_texts:
            raise ValueError(f"max_waiting is {self.max_waiting}, expected at least max_texts, {self.max_texts}")
        return self


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind

    def response(self) -> Response:
        """As JSON."""
        headers = {"retry-after": "1"} if self.status in (429, 503) else {}
        return _json({"error": {"type": self.kind, "message": str(self)}}, self.status, headers)


def refusal(error: Exception) -> RefusedError:
    """What a client is told of an error of the runtime's."""
    status, kind = next((found for cause, found in KINDS.items() if isinstance(error, cause)), (500, "internal"))
    return RefusedError(status, kind, str(error))


@serve.deployment
class ModernBert:
    """One replica: a loaded model, and a batcher that its callers share."""

    def __init__(self, arguments: Arguments) -> None:
        # ONNX Runtime and the tokenizer do not read OMP_NUM_THREADS, which Ray sets: each would take all cores.
        os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)
        self._arguments = arguments
        model = load(arguments.bundle, arguments.device, arguments.precision, threads=arguments.threads)
        if model.device != arguments.device:
            raise BackendError(f"device is {arguments.device}, but the model runs on {model.description}")
        model.check()
        largest = arguments.max_texts * model.manifest.max_length  # tokens of a request, which an idle replica takes
        self._batcher = Batcher(
            model,
            max_delay=arguments.max_delay,
            max_waiting=arguments.max_waiting,
            max_waiting_tokens=arguments.max_waiting_tokens or max(largest, WAITING_BATCHES * model.batch_tokens),
            timeout=arguments.timeout,
        )

    async def __call__(self, request: Request) -> Response:
        """POST /predict: answers to the texts of a request, in order."""
        try:
            if not request.url.path.endswith("/predict"):
                raise RefusedError(404, "not_found", f"{request.url.path} is not here; POST to /predict")
            if request.method != "POST":
                raise RefusedError(405, "method_not_allowed", f"{request.method} is not taken; POST to /predict")
            items = read_items(await request.body(), self._arguments)
            return _json({"predictions": await self.answers(items)})
        except RefusedError as refused:
            return refused.response()
        except Exception as error:
            log.exception("a request failed")
            return RefusedError(500, "internal", f"{type(error).__name__}; the replica's log has more").response()

    async def answers(self, items: list[Any]) -> list[Any]:
        """Answers in order, without NumPy's types; for other deployments: ``await handle.answers.remote(texts)``.

        Raises:
            RefusedError: the first text that has none, and why; the others are given up.
        """
        tasks = [asyncio.ensure_future(self._answer(number, item)) for number, item in enumerate(items)]
        try:
            return list(await asyncio.gather(*tasks))
        finally:  # also where the client went away, for which Serve cancels
            for task in tasks:
                task.cancel()

    async def _answer(self, number: int, item: Any) -> Any:
        try:
            answer = await self._batcher.answer(tuple(item) if isinstance(item, list) else item)
        except InputError as error:
            message = re.sub("^(text|item) 0", f"item {number}", str(error))  # of a list of one
            raise RefusedError(422, "invalid_texts", message) from error
        except MbexportError as error:
            raise refusal(error) from error
        try:
            return plain(answer)
        except ValueError as error:
            raise RefusedError(500, "not_finite", f"item {number}: {error}") from error

    async def check_health(self) -> None:
        """A forward pass of one token on the device; where it fails three times Serve replaces the replica."""
        await asyncio.to_thread(self._batcher.check, CHECK_SECONDS)

    def __del__(self) -> None:
        """Called by Serve once the replica's requests are answered."""
        if hasattr(self, "_batcher"):  # the model may never have loaded
            self._batcher.close(timeout=CLOSE_SECONDS)


def read_items(body: bytes, arguments: Arguments) -> list[Any]:
    """The items of a request.

    Raises:
        RefusedError: it is too large, no JSON, or holds something else.
    """
    if len(body) > arguments.max_body:
        raise RefusedError(413, "body_too_large", f"the body has {len(body)} bytes, at most {arguments.max_body}")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as cause:
        raise RefusedError(400, "invalid_json", f"the body is no JSON: {cause}") from cause
    inputs = found.get("inputs") if isinstance(found, dict) and found.keys() == {"inputs"} else None
    items = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(items, list):
        raise RefusedError(422, "invalid_request", 'expected {"inputs": text}, or {"inputs": [text, ...]}')
    if len(items) > arguments.max_texts:
        raise RefusedError(413, "too_many_texts", f"{len(items)} texts, at most {arguments.max_texts} in a request")
    return items


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(value, allow_nan=False).encode()
    return Response(body, status, headers, "application/json")


def build(arguments: Arguments) -> serve.Application:
    """The application, for ``serve run``, a config file, or ``serve.run(build(Arguments(...)))``."""
    gpu = arguments.device == "cuda"
    target = arguments.target_ongoing_requests or (BUSY_GPU if gpu else 2 * arguments.threads)
    return ModernBert.options(
        ray_actor_options={"num_cpus": arguments.threads, "num_gpus": int(gpu)},
        max_ongoing_requests=arguments.max_ongoing_requests or math.ceil(4 * target),
        max_queued_requests=arguments.max_queued_requests,
        autoscaling_config=AutoscalingConfig(
            min_replicas=arguments.min_replicas,
            max_replicas=arguments.max_replicas,
            target_ongoing_requests=target,
            upscale_delay_s=10,  # a replica starts within seconds
            downscale_delay_s=300,
        ),
        health_check_period_s=10,
        health_check_timeout_s=CHECK_SECONDS + 10,
        graceful_shutdown_timeout_s=DRAIN_SECONDS,
    ).bind(arguments)
