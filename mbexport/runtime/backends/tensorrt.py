"""TensorRT and TensorRT-RTX engines, through their Python modules and cuda-bindings."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mbexport.errors import BackendError
from mbexport.manifest import Engine
from mbexport.optional import require
from mbexport.options import BUILDER_MODULES
from mbexport.profiles import parse_profiles, profiles_text
from mbexport.runtime.backends.interface import FloatArray, IntArray
from mbexport.runtime.backends.session import Session
from mbexport.runtime.backends.tensors import inputs_of
from mbexport.runtime.backends.trt_api import TensorRT
from mbexport.runtime.batches import Limits, token_budget
from mbexport.runtime.cuda import Cuda, load_module
from mbexport.runtime.engines import packages, read_engine
from mbexport.runtime.shapes import choose_profile, places_in, resolved

NAMES = {"tensorrt-rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}


class TensorRTBackend:
    """An engine on the first GPU that this process sees.

    Safe to call from several threads, which take turns: there is one stream, and one set of buffers.
    It belongs to the process that made it; a forked one cannot use its CUDA.

    Args:
        bundle: the bundle.
        engine: its entry in the manifest, one that fits (:func:`choose_engines`).

    Attributes:
        limits: what may be run at one time.
        per_token: names of the outputs that have a place for each token.
        packs: whether a row holds several texts.
        description: the file and runtime in use.
        device: ``cuda``.

    Raises:
        BundleError: the file is not the one of the manifest; it is read and hashed whole.
        MissingExtraError: TensorRT or cuda-bindings is not installed.
        BackendError: TensorRT does not load or refuses the engine, the GPU's memory is full, or CUDA failed.
    """

    device = "cuda"

    def __init__(self, bundle: Path, engine: Engine) -> None:
        require(BUILDER_MODULES[engine.builder], "cuda.bindings", packages=packages(engine))
        content = read_engine(bundle, engine)
        trt: TensorRT = load_module(BUILDER_MODULES[engine.builder])
        self.description = f"{Path(engine.file).name} on {NAMES[engine.builder]} {trt.__version__}"
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._session = Session(trt, Cuda(), content, self.description)
        # Also when the interpreter ends, while CUDA is still there.
        self._close = weakref.finalize(self, _close, self._session, self._process)
        self._shapes = self._session.output_shapes
        self.packs = self._session.packs
        self.per_token = frozenset(name for name, shape in self._shapes.items() if shape[1:2] == (-1,))
        self.limits = Limits(self._session.profiles, token_budget(map(self.width, self.per_token)))
        try:
            self._check(engine)
        except BackendError:
            self._close()
            raise

    def _check(self, engine: Engine) -> None:
        """What the engine says of itself must be what the manifest says, and what the runtime counts on."""
        found, expected = profiles_text(self.limits.profiles), profiles_text(parse_profiles(engine.profile))
        if found != expected:
            raise BackendError(f"{self.description} has the profiles {found}, the manifest says {expected}")
        for name, shape in self._shapes.items():
            if shape[:1] != (-1,) or -1 in shape[2:]:
                raise BackendError(f"{self.description}: {name} has the shape {shape}, expected [batch, ...]")

    def width(self, output: str) -> int:
        """Size of an output's last axis, 1 where that is the tokens', 0 where the engine has no such output."""
        return abs(self._shapes[output][-1]) if output in self._shapes else 0

    def close(self) -> None:
        """Give all of the GPU's memory back now; the backend is of no use then."""
        with self._lock:
            self._close()

    def run(
        self,
        input_ids: IntArray,
        attention_mask: IntArray,
        positions: IntArray | None = None,
        wanted: Sequence[str] | None = None,
    ) -> dict[str, FloatArray]:
        """One forward pass, as :meth:`mbexport.runtime.backends.interface.Backend.run` says.

        A batch smaller than a profile's smallest is filled up; what is filled in is not in the outputs.
        Only outputs that are wanted are copied from the GPU, and of tokens only the rows at ``positions``.

        Raises:
            BackendError: no profile takes the batch, memory is full, or CUDA failed.
        """
        batch, length = input_ids.shape
        fit = choose_profile(self.limits.profiles, batch, length)
        if fit is None:
            profiles = profiles_text(self.limits.profiles)
            raise BackendError(f"{self.description}: no profile takes a batch of {batch}x{length}; it has {profiles}")
        shapes = {name: resolved(shape, fit.batch, fit.length) for name, shape in self._shapes.items()}
        rows = None if positions is None else places_in(positions.tolist(), length, fit.length)
        copied = {name: rows if name in self.per_token else None for name in wanted or shapes}
        with self._lock:
            self._check_alive()
            inputs = inputs_of(input_ids, attention_mask, packs=self.packs)
            values = self._session.run(fit, inputs, shapes, copied)
            return {  # copies: the next run writes to the same memory
                name: np.array(value if copied[name] is not None else self._cut(name, value, batch, length), np.float32)
                for name, value in values.items()
            }

    def _cut(self, name: str, value: FloatArray, batch: int, length: int) -> FloatArray:
        """An output without what its batch was filled up with."""
        return value[:batch, :length] if name in self.per_token else value[:batch]

    def _check_alive(self) -> None:
        if self._process != os.getpid():
            raise BackendError(f"{self.description} was loaded before this process was forked; load the bundle in it")
        if not self._close.alive:
            raise BackendError(f"{self.description} was closed; load the bundle again")


def _close(session: Session, process: int) -> None:
    """Give back what a session holds; a forked process has none of it."""
    if process == os.getpid():
        session.close()
