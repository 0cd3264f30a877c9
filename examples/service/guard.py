"""What stands before the application: how many requests, how large, how slow; and counts of all answers.

It is plain ASGI, so that a request too many costs little, and is refused before its body is read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ServiceError
from .metrics import HttpMetrics
from .settings import Settings

SMALL_BODY = 65_536  # bytes that are dropped to keep a connection, or parsed on the event loop
LINGER_SECONDS = 5.0  # a client that is sending reads its answer only afterwards
ALWAYS = ("/health", "/metrics")  # answered however many connections are open
Reason = Callable[[], "str | None"]


class Guard:
    """Refuses what is too much, and hands on requests whose body is complete.

    Args:
        app: the application behind it.
        settings: the limits.
        crowded: says, in words, why a connection should not be kept; None where it can be.
        busy: says why a request could not be taken now; None where it could.
        metrics: what is counted.
    """

    def __init__(self, app: ASGIApp, settings: Settings, crowded: Reason, busy: Reason, metrics: HttpMetrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.crowded, self.busy = crowded, busy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, start = 499, time.perf_counter()  # 499: the client went away before it was answered

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            reason = None if scope["path"].startswith(ALWAYS) else self.crowded()
            if reason:
                refusal = ServiceError(503, "too_many_connections", reason, close=True)
                await _refuse(refusal, scope, receive, counted)
            elif scope["method"] == "POST":
                await self._post(scope, receive, counted)
            else:
                await self.app(scope, receive, counted)
        except BaseException:
            status = 500 if status == 499 else status
            raise
        finally:
            self.metrics.answered(scope, status, time.perf_counter() - start)

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = _content_length(scope)
        try:
            self._admit(length)
        except ServiceError as refusal:
            await _refuse(refusal, scope, receive, send)
            return
        self.metrics.in_flight += 1
        try:
            body = await self._body(receive)
            if body is not None:
                await self.app(scope, _replay(body, receive), send)
        except ServiceError as refusal:
            await _refuse(refusal, scope, receive, send)
        except asyncio.CancelledError:  # by uvicorn, which has waited for drain_timeout
            ending = ServiceError(503, "closing", "the service ends, and this was not finished in time")
            await ending.response()(scope, receive, send)
        finally:
            self.metrics.in_flight -= 1

    def _admit(self, length: int | None) -> None:
        """Raise a ServiceError where a request of so many bytes cannot be taken."""
        most = self.settings.max_body_bytes
        close = length is None or length > SMALL_BODY
        if length is not None and length > most:
            raise ServiceError(413, "body_too_large", f"the body has {length} bytes, at most {most}", close=True)
        if self.metrics.in_flight >= self.settings.max_requests:
            message = f"{self.settings.max_requests} requests are in flight; try again later"
            raise ServiceError(429, "busy", message, close=close)
        reason = self.busy()
        if reason:
            raise ServiceError(429, "busy", reason, close=close)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None where the client went away."""
        most, seconds = self.settings.max_body_bytes, self.settings.read_timeout
        chunks: list[bytes] = []
        size, end = 0, time.monotonic() + seconds
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except asyncio.TimeoutError:
                found = f"only {size} bytes of the body were there after {seconds:g} s"
                raise ServiceError(408, "body_timeout", found, close=True) from None
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > most:
                raise ServiceError(413, "body_too_large", f"the body has more than {most} bytes", close=True)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)


async def until_gone(receive: Receive) -> None:
    """Return when the client has gone away; its body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _content_length(scope: Scope) -> int | None:
    values = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(values[0]) if values else None  # the HTTP parser has checked it


def _replay(body: bytes, receive: Receive) -> Receive:
    """``receive`` that gives the body at once, then what the server says."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _refuse(refusal: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer at once.

    A connection that is to be closed stays open until the client has sent its body, which is dropped:
    closed before, it would be reset, and a client that is still sending would never see the answer.
    """
    if not refusal.close:
        await refusal.response()(scope, receive, send)
        return

    async def unfinished(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    async def rest() -> None:
        while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
            pass

    await refusal.response()(scope, receive, unfinished)
    if refusal.status != 408:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(rest(), LINGER_SECONDS)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
