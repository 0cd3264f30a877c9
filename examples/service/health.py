"""Whether the model really computes: what /health/ready and /health/live say.

A probe reads what is known and never waits. What is known comes from a heartbeat: where no forward
pass succeeded for a third of ``ready_window``, it runs one, through the batcher's own thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from mbexport.errors import MbexportError
from mbexport.runtime import Batcher

log = logging.getLogger("uvicorn.error")


class Health:
    """Reasons why the service is not ready, or no more alive.

    Args:
        batcher: whose forward passes count.
        ready_window: seconds; see :meth:`unready`.
        dead_after: seconds; see :meth:`dead`.
    """

    def __init__(self, batcher: Batcher, ready_window: float, dead_after: float) -> None:
        self.batcher, self.ready_window, self.dead_after = batcher, ready_window, dead_after
        self._started = time.monotonic()
        self._failure: str | None = None  # of the last heartbeat

    @property
    def age(self) -> float:
        """Seconds since a forward pass succeeded; since the start, where none has."""
        last = self.batcher.last_success
        return time.monotonic() - (self._started if last is None else last)

    def unready(self) -> str | None:
        """Why no traffic should come: the backend is dead, or no forward pass succeeded within ``ready_window``."""
        return self._silent(self.ready_window)

    def dead(self) -> str | None:
        """Why the process should be replaced: the backend is dead, or hangs for longer than ``dead_after``."""
        return self._silent(self.dead_after)

    def _silent(self, limit: float) -> str | None:
        if self.batcher.fault is not None:
            return str(self.batcher.fault)
        if self.age <= limit:
            return None
        reason = f"no forward pass succeeded for {self.age:.1f} s, expected one every {limit:g} s"
        busy = self.batcher.busy_since
        if busy is not None:
            return f"{reason}; one has been running for {time.monotonic() - busy:.1f} s"
        return f"{reason}; {self._failure or 'none was tried'}"

    async def heartbeat(self) -> None:
        """Run for as long as the service does."""
        every = self.ready_window / 3
        while True:
            if self.age >= every and self.batcher.fault is None:
                try:
                    await asyncio.to_thread(self.batcher.check, every)
                    self._failure = None
                except Exception as cause:  # whatever it is, the next may succeed
                    if self._failure is None:
                        expected = isinstance(cause, MbexportError)
                        log.error("the model does not compute: %s", cause, exc_info=None if expected else cause)
                    self._failure = str(cause) or type(cause).__name__
            await asyncio.sleep(min(every, max(every - self.age, every / 10)))

    def report(self) -> dict[str, Any]:
        """Both, and the figures that they are made of."""
        unready, dead, busy = self.unready(), self.dead(), self.batcher.busy_since
        return {
            "live": dead is None,
            "ready": unready is None and dead is None,
            "reason": dead or unready,
            "last_success_seconds": round(self.age, 3),
            "computing_seconds": None if busy is None else round(time.monotonic() - busy, 3),
            "waiting": self.batcher.waiting,
            "waiting_tokens": self.batcher.waiting_tokens,
        }
