"""Load the bundle, compute once, listen: ``MBEXPORT_BUNDLE=... python -m service``."""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":  # as PID 1 a signal without a handler is lost, and the imports below take seconds
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # nothing was taken yet

import errno
import logging
import math
import socket
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI

from mbexport.errors import BackendError, InputError, MbexportError
from mbexport.runtime import Model, load

from .app import create_app
from .connections import Server, connections
from .settings import Settings


def load_model(settings: Settings) -> Model:
    """The model, after a first forward pass.

    Raises:
        MbexportError: it cannot be loaded, does not compute, or is not on the device that is required.
    """
    model = load(settings.bundle, settings.device, settings.precision, settings.threads or None)
    if settings.require_device not in ("", model.device):
        raise BackendError(f"the model runs on {model.device}, MBEXPORT_REQUIRE_DEVICE is {settings.require_device}")
    model.check()
    return model


def bind(settings: Settings) -> list[socket.socket]:
    """A socket for each address of the host, none of which listens yet.

    Raises:
        InputError: the host is unknown or not this machine's, or the port is in use or not allowed.
    """
    host, port = settings.address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        sockets = [one for family, *_, address in found if (one := _bound(family, address))]
        if not sockets:
            raise OSError(errno.EADDRNOTAVAIL, "the address is not this machine's")
    except (OSError, UnicodeError) as cause:  # UnicodeError: no name can be so long
        reason = getattr(cause, "strerror", None) or cause
        raise InputError(f"MBEXPORT_LISTEN is {settings.listen!r:.80}, where it cannot listen: {reason}") from cause
    return sockets


def _bound(family: int, address: tuple[Any, ...]) -> socket.socket | None:
    """None where the machine has no such address: one without IPv6 may still know ::1 as localhost."""
    try:
        # With its protocol named: only then does asyncio turn Nagle's delay off, which costs 40 ms an answer.
        one = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
    except OSError as cause:
        if cause.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        raise
    return one


def serve(app: FastAPI, settings: Settings, sockets: list[socket.socket]) -> None:
    """Serve until SIGTERM or Ctrl+C; then finish what was taken, and end the process where a device hangs."""
    config = uvicorn.Config(
        app,
        http=connections(settings.read_timeout, 2 * settings.max_connections),
        ws="none",
        access_log=False,  # /metrics counts
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout),
    )
    logging.getLogger("uvicorn.error").info("listening on %s", settings.listen)
    server = Server(config)
    app.state.served.connections = server.server_state.connections
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises the signal that ended it again
    try:
        server.run(sockets)
    finally:
        if app.state.served.batcher.busy_since is not None:
            print("service: a forward pass does not end; leaving it", file=sys.stderr, flush=True)
            os._exit(1)  # Python itself would wait for its thread


def main() -> int:
    """Exit code 0 after SIGTERM, 1 where a forward pass did not end, 2 where the service cannot start."""
    try:
        settings = Settings.from_environment(os.environ)
        sockets = bind(settings)
        model = load_model(settings)
    except MbexportError as cause:
        print(f"service: error: {cause}", file=sys.stderr)
        return 2
    serve(create_app(model, settings), settings, sockets)
    return 0


if __name__ == "__main__":
    sys.exit(main())
