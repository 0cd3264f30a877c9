"""Load the bundle, compute once, listen: ``MBEXPORT_BUNDLE=... python -m service``."""

from __future__ import annotations

import math
import os
import signal
import sys

import uvicorn
from fastapi import FastAPI

from mbexport.errors import BackendError, MbexportError
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


def serve(app: FastAPI, settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl+C; then finish what was taken, and end the process where a device hangs."""
    host, port = settings.address
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=connections(settings.read_timeout, 2 * settings.max_connections),
        ws="none",
        access_log=False,  # /metrics counts
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout),
    )
    server = Server(config)
    app.state.served.connections = server.server_state.connections
    try:
        server.run()
    finally:  # uvicorn raises the signal that ended it again
        if app.state.served.batcher.busy_since is not None:
            print("service: a forward pass does not end; leaving it", file=sys.stderr, flush=True)
            os._exit(1)  # Python itself would wait for its thread


def main() -> int:
    """Exit code 0 after SIGTERM, 1 where a forward pass did not end, 2 where the service cannot start."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        settings = Settings.from_environment(os.environ)
        model = load_model(settings)
    except MbexportError as cause:
        print(f"service: error: {cause}", file=sys.stderr)
        return 2
    serve(create_app(model, settings), settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
