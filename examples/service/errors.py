"""Every refusal is one JSON object: ``{"error": {"type", "message", ...}}``."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from mbexport.errors import BackendError, BusyError, ClosedError, DeadlineError, InputError, MbexportError

RETRY_SECONDS = "1"  # a full queue is computed in about that time


class ServiceError(Exception):
    """An answer that is an error.

    Args:
        status: the HTTP status.
        kind: what programs tell errors by.
        message: for people: what was found, what was expected, what to do.
        details: further fields of the error.
        close: whether the connection is of no more use: its body was not read.
    """

    def __init__(self, status: int, kind: str, message: str, *, close: bool = False, **details: Any) -> None:
        super().__init__(message)
        self.status, self.close = status, close
        self.error = {"type": kind, "message": message, **details}

    def response(self) -> Response:
        """As an ASGI application that answers with it."""
        headers = {"retry-after": RETRY_SECONDS} if self.status in (429, 503) else {}
        if self.close:
            headers["connection"] = "close"
        # A message may quote what no encoding can write, e.g. a lone surrogate.
        error = {key: _writable(value) for key, value in self.error.items()}
        return Response(to_json({"error": error}), self.status, headers, "application/json")


def _writable(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def service_error(error: MbexportError) -> ServiceError:
    """What a client is told of an error of the runtime's."""
    message = str(error)
    if isinstance(error, InputError):
        return ServiceError(422, "invalid_request", message)
    if isinstance(error, BusyError):
        return ServiceError(429, "busy", message)
    if isinstance(error, DeadlineError):
        return ServiceError(504, "deadline", message)
    if isinstance(error, ClosedError):
        return ServiceError(503, "closing", message)
    if isinstance(error, BackendError):
        return ServiceError(503, "backend", message)
    return ServiceError(500, "internal", message)
