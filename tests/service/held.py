"""examples/service with a backend that a test holds: it computes, hangs or fails, as a file says.

The file named on the command line says ``hang`` or ``fail``; without it, forward passes run as ever.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from examples.service.__main__ import load_model, serve
from examples.service.app import create_app
from examples.service.settings import Settings
from mbexport.errors import BackendError
from mbexport.runtime.backends.ort import OnnxRuntimeBackend

ORDERS = Path(sys.argv[1])
real_run = OnnxRuntimeBackend.run


def held_run(self: OnnxRuntimeBackend, *arguments: object, **rest: object) -> object:
    while (order := ORDERS.read_text() if ORDERS.exists() else "") == "hang":
        time.sleep(0.01)
    if order == "fail":
        raise BackendError("the device is lost")
    return real_run(self, *arguments, **rest)


if __name__ == "__main__":
    settings = Settings.from_environment(os.environ)
    model = load_model(settings)
    OnnxRuntimeBackend.run = held_run
    import signal

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    serve(create_app(model, settings), settings)
