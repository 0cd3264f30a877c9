"""Every refusal is one JSON object: ``{"error": {"type", "message", ...}}``."""

from __future__ import annotations

from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from mbexport.errors import (
    BackendError,
    BusyError,
    ClosedError,
    DeadlineError,
    InputError,
    MbexportError,
    NotFiniteError,
)

RETRY_SECONDS = "1"  # a full queue is computed in about that time
KINDS: tuple[tuple[type[MbexportError], int, str], ...] = (
    (InputError, 422, "invalid_request"),
    (BusyError, 429, "busy"),
    (DeadlineError, 504, "deadline"),
    (ClosedError, 503, "closing"),
    (NotFiniteError, 500, "not_finite"),  # as it will be when the text is sent again
    (BackendError, 503, "backend"),
)


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
    known = ((status, kind) for error_type, status, kind in KINDS if isinstance(error, error_type))
    return ServiceError(*next(known, (500, "internal")), str(error))
