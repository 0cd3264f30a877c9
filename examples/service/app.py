"""The application: what each path answers. ``python -m service`` (__main__.py) runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from mbexport.errors import MbexportError
from mbexport.runtime import Batcher, Model
from mbexport.runtime.batcher import WAITING_BATCHES
from mbexport.runtime.plain import plain
from mbexport.runtime.prometheus import PrometheusObserver
from mbexport.version import __version__

from .errors import ServiceError, service_error
from .feed import Feed
from .guard import SMALL_BODY, Guard, until_gone
from .health import Health
from .inputs import Call, Limits, read_call
from .metrics import HttpMetrics
from .openapi import EMBED, PREDICT
from .settings import CHARS_PER_TOKEN, LEAST_CHARS, Settings

T = TypeVar("T")
CLOSE_SECONDS = 2.0


class Served:
    """A model, and all that stands between it and the paths; it owns the model's batcher.

    Args:
        model: loaded, and known to compute.
        settings: limits and times.
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.connections: Sized = ()  # the server's, where it shows them
        self.registry = CollectorRegistry()
        self.metrics = HttpMetrics(self.registry, model)
        self.most_tokens = settings.max_waiting_tokens or WAITING_BATCHES * model.batch_tokens
        self.batcher = Batcher(
            model,
            max_tokens=settings.max_batch_tokens or None,
            max_delay=settings.max_delay,
            max_waiting=settings.max_waiting,
            # More than busy() lets in: what was let in is seldom refused after it was read and tokenized.
            max_waiting_tokens=self.most_tokens + model.batch_tokens,
            timeout=settings.timeout,
            observer=PrometheusObserver(self.registry),
        )
        self.health = Health(self.batcher, settings.ready_window, settings.dead_after)
        # A token has about four characters, so one request takes about a quarter of the queue.
        most_waiting = max(1, settings.max_waiting // 4)
        self.feed = Feed(self.batcher, most_waiting, self.most_tokens, settings.max_numbers, settings.timeout)
        chars = settings.max_chars or max(CHARS_PER_TOKEN * model.manifest.max_length, LEAST_CHARS)
        self.limits = Limits(settings.max_texts, chars)
        self._reader = ThreadPoolExecutor(1, "read")

    async def call(self, body: bytes, *fields: str) -> Call:
        """What a body asks for, as ``read_call`` says it; large ones are read beside the event loop, one at a time."""
        read = partial(read_call, body, fields, self.model.manifest.task, self.limits)
        if len(body) <= SMALL_BODY:
            return read()
        return await asyncio.get_running_loop().run_in_executor(self._reader, read)

    def crowded(self) -> str | None:
        """Why a connection should not be kept, None where it can be."""
        found, most = len(self.connections), self.settings.max_connections
        return f"{found} connections are open, at most {most}; try again later" if found > most else None

    def busy(self) -> str | None:
        """Why nothing can be taken now, None where it can."""
        texts, tokens = self.batcher.waiting, self.batcher.waiting_tokens
        if texts < self.settings.max_waiting and tokens < self.most_tokens:
            return None
        return f"{texts} texts with {tokens} tokens are waiting; try again later"

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """From before the first request until after the last: all have ended then, or were cancelled."""
        heartbeat = asyncio.create_task(self.health.heartbeat())
        yield
        heartbeat.cancel()
        self.feed.close()
        self._reader.shutdown(wait=False, cancel_futures=True)
        # A forward pass that hangs is left to __main__.py.
        await asyncio.to_thread(self.batcher.close, drain=False, timeout=CLOSE_SECONDS)

    def info(self) -> dict[str, Any]:
        """What is served, and by which limits."""
        manifest, settings = self.model.manifest, self.settings
        return {
            "model": manifest.source.name,
            "task": manifest.task,
            "labels": manifest.labels,
            "max_length": manifest.max_length,
            "prompts": sorted(manifest.sentence.prompts) if manifest.sentence else [],
            "device": self.model.device,
            "running": self.model.description,
            "version": __version__,
            "limits": {
                "body_bytes": settings.max_body_bytes,
                "texts": self.limits.texts,
                "chars": self.limits.chars,
                "requests": settings.max_requests,
                "numbers": settings.max_numbers,
                "timeout_seconds": settings.timeout,
            },
        }


def create_app(model: Model, settings: Settings) -> FastAPI:
    """A service of one model.

    Args:
        model: loaded, and known to compute.
        settings: limits and times.
    """
    served = Served(model, settings)
    app = FastAPI(
        title="mbexport",
        version=__version__,
        lifespan=served.lifespan,
        docs_url=None,  # pages that load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.served = served
    app.add_middleware(Guard, settings=settings, crowded=served.crowded, busy=served.busy, metrics=served.metrics)
    _answer_errors(app)
    _model_paths(app, served)
    _state_paths(app, served)
    return app


def _model_paths(app: FastAPI, served: Served) -> None:
    manifest = served.model.manifest
    prompts = manifest.sentence.prompts if manifest.sentence else {}

    @app.post("/predict", openapi_extra=PREDICT)
    async def predict(request: Request) -> Response:
        """One answer per text, in order, as ``model(texts)`` gives them."""
        call = await served.call(await request.body())
        answers = await _unless_gone(request, served.feed.answers(call))
        return _json({"predictions": _plain(answers)})

    @app.post("/embed", openapi_extra=EMBED)
    async def embed(request: Request) -> Response:
        """One vector per text, in order, as ``model.embed(texts)`` gives them."""
        if manifest.task != "feature-extraction" or manifest.pooling is None:
            message = f"this model does {manifest.task} and has no embeddings of texts; use /predict"
            raise ServiceError(400, "wrong_task", message)
        call = await served.call(await request.body(), "prompt_name", "truncate_dim")
        if call.prompt_name is not None and call.prompt_name not in prompts:
            known = ", ".join(prompts) or "none"
            raise ServiceError(422, "invalid_request", f"no prompt {call.prompt_name!r:.80}; the model has {known}")
        answers = await _unless_gone(request, served.feed.answers(call))
        return _json({"embeddings": _plain(answers)})


def _state_paths(app: FastAPI, served: Served) -> None:
    @app.get("/health")
    async def both() -> Response:
        """Both, and why; 200 only if ready."""
        report = served.health.report()
        return _json(report, 200 if report["ready"] else 503)

    @app.get("/health/live")
    async def live() -> Response:
        """503 once the backend is dead, or nothing was computed for ``dead_after`` seconds: replace the process."""
        reason = served.health.dead()
        return _json({"live": reason is None, "reason": reason}, 503 if reason else 200)

    @app.get("/health/ready")
    async def ready() -> Response:
        """503 where the backend is dead, or its last forward pass is too long ago: send no requests."""
        reason = served.health.unready()
        return _json({"ready": reason is None, "reason": reason}, 503 if reason else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(served.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    @app.get("/info")
    async def info() -> Response:
        """What is served, and by which limits."""
        return _json(served.info())


def _answer_errors(app: FastAPI) -> None:
    """Errors of all kinds as the JSON of :class:`ServiceError`."""

    @app.exception_handler(ServiceError)
    async def refused(_: Request, refusal: ServiceError) -> Response:
        return refusal.response()

    @app.exception_handler(MbexportError)
    async def failed(_: Request, error: MbexportError) -> Response:
        return service_error(error).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        kind = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http")
        message = f"{request.method:.80} {request.url.path:.80}: {error.detail}; see /openapi.json"
        response = ServiceError(error.status_code, kind, message).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        message = f"a fault of the service's: {type(error).__name__}; its log has more"
        return ServiceError(500, "internal", message).response()


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The work's result; where the client goes away first, the work is cancelled.

    Raises:
        ServiceError: 499, which nobody will read but is counted.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ServiceError(499, "client_gone", "the client went away")
        return task.result()
    finally:
        for ending in (task, gone):
            ending.cancel()


def _plain(answers: list[Any]) -> list[Any]:
    try:
        return [plain(answer) for answer in answers]
    except ValueError as cause:
        raise ServiceError(500, "not_finite", str(cause)) from cause


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")
