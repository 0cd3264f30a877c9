"""examples/service with a backend that a test holds: it computes, hangs or fails, as a file says.

The file named on the command line says ``hang``, ``fail`` or ``nan``; without it, forward passes run as ever.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from examples.service.__main__ import bind, load_model, serve
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
    outputs = real_run(self, *arguments, **rest)
    return {name: values * np.nan for name, values in outputs.items()} if order == "nan" else outputs


if __name__ == "__main__":
    settings = Settings.from_environment(os.environ)
    model = load_model(settings)
    OnnxRuntimeBackend.run = held_run
    serve(create_app(model, settings), settings, bind(settings))
