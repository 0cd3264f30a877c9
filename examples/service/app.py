"""The application: what each path answers. ``python -m service`` (__main__.py) runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from mbexport.errors import MbexportError
from mbexport.runtime import Batcher, Model
from mbexport.runtime.prometheus import PrometheusObserver
from mbexport.version import __version__

from .errors import ServiceError, service_error
from .feed import Feed
from .guard import Guard, until_gone
from .health import Health
from .inputs import Limits, plain, read_call
from .metrics import HttpMetrics
from .openapi import EMBED, PREDICT
from .settings import CHARS_PER_TOKEN, LEAST_CHARS, Settings

T = TypeVar("T")
# In units of what keeps the device busy. Texts of mixed lengths fill all cores evenly, one core each, only
# where there are many; what waits is a fraction of a second's work.
IN_BATCH, IN_QUEUE = 4, 16
CLOSE_SECONDS = 2.0


def create_app(model: Model, settings: Settings) -> FastAPI:
    """A service of one model; it starts and ends the model's batcher.

    Args:
        model: loaded, and known to compute.
        settings: limits and times.
    """
    registry = CollectorRegistry()
    most_tokens = settings.max_waiting_tokens or IN_QUEUE * model.batch_tokens
    batcher = Batcher(
        model,
        max_tokens=settings.max_batch_tokens or IN_BATCH * model.batch_tokens,
        max_delay=settings.max_delay,
        max_waiting=settings.max_waiting,
        # More than busy() lets in: what was let in is seldom refused after it was read and tokenized.
        max_waiting_tokens=most_tokens + model.batch_tokens,
        timeout=settings.timeout,
        observer=PrometheusObserver(registry),
    )
    health = Health(batcher, settings.ready_window, settings.dead_after)
    # A token has about four characters, so one request takes about a quarter of the queue.
    feed = Feed(batcher, max(1, settings.max_waiting // 4), most_tokens, settings.timeout)
    manifest = model.manifest
    chars = settings.max_chars or max(CHARS_PER_TOKEN * manifest.max_length, LEAST_CHARS)
    limits = Limits(settings.max_texts, chars)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        heartbeat = asyncio.create_task(health.heartbeat())
        yield
        heartbeat.cancel()
        feed.close()
        # All requests have ended, or were cancelled; a forward pass that hangs is left to __main__.py.
        await asyncio.to_thread(batcher.close, drain=False, timeout=CLOSE_SECONDS)

    def busy() -> str | None:
        if batcher.waiting >= settings.max_waiting or batcher.waiting_tokens >= most_tokens:
            return f"{batcher.waiting} texts with {batcher.waiting_tokens} tokens are waiting; try again later"
        return None

    app = FastAPI(
        title="mbexport",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # pages that load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.batcher = batcher
    app.add_middleware(Guard, settings=settings, busy=busy, metrics=HttpMetrics(registry, model))  # type: ignore[arg-type]
    _answer_errors(app)

    @app.post("/predict", openapi_extra=PREDICT)
    async def predict(request: Request) -> Response:
        """One answer per text, in order, as ``model(texts)`` gives them."""
        call = read_call(await request.body(), (), manifest.task, limits)
        answers = await _unless_gone(request, feed.answers(call))
        return _json({"predictions": _plain(answers)})

    @app.post("/embed", openapi_extra=EMBED)
    async def embed(request: Request) -> Response:
        """One vector per text, in order, as ``model.embed(texts)`` gives them."""
        if manifest.task != "feature-extraction" or manifest.pooling is None:
            message = f"this model does {manifest.task} and has no embeddings of texts; use /predict"
            raise ServiceError(400, "wrong_task", message)
        call = read_call(await request.body(), ("prompt_name", "truncate_dim"), manifest.task, limits)
        answers = await _unless_gone(request, feed.answers(call))
        return _json({"embeddings": _plain(answers)})

    @app.get("/health")
    async def both() -> Response:
        """Both, and why; 200 only if ready."""
        report = health.report()
        return _json(report, 200 if report["ready"] else 503)

    @app.get("/health/live")
    async def live() -> Response:
        """503 once the model has computed nothing for ``dead_after`` seconds: replace the process."""
        reason = health.dead()
        return _json({"live": reason is None, "reason": reason}, 503 if reason else 200)

    @app.get("/health/ready")
    async def ready() -> Response:
        """503 where the last forward pass failed or is too long ago: send no requests."""
        reason = health.unready()
        return _json({"ready": reason is None, "reason": reason}, 503 if reason else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})

    @app.get("/info")
    async def info() -> Response:
        """What is served, and by which limits."""
        return _json(_info(model, settings, limits))

    return app


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
        message = f"{request.method} {request.url.path}: {error.detail}; see /openapi.json"
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


def _info(model: Model, settings: Settings, limits: Limits) -> dict[str, Any]:
    manifest = model.manifest
    return {
        "model": manifest.source.name,
        "task": manifest.task,
        "labels": manifest.labels,
        "max_length": manifest.max_length,
        "prompts": sorted(manifest.sentence.prompts) if manifest.sentence else [],
        "device": model.device,
        "running": model.description,
        "version": __version__,
        "limits": {
            "body_bytes": settings.max_body_bytes,
            "texts": limits.texts,
            "chars": limits.chars,
            "requests": settings.max_requests,
            "timeout_seconds": settings.timeout,
        },
    }
