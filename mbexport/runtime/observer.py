"""What a batcher tells of itself, and that telling it breaks nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

log = logging.getLogger(__name__)


class Observer(Protocol):
    """Hears of a batcher's depth, batches and outcomes, on the thread where they happen, one call at a time.

    Be quick, and never wait for the batcher. What a call raises is logged, the first time, and
    changes nothing else.
    """

    def queue(self, texts: int, tokens: int) -> None:
        """What waits, whenever that changes: texts (those being tokenized, too) and their tokens."""

    def batch(self, texts: int, tokens: int, seconds: float) -> None:
        """A forward pass was done, of so many texts and tokens, padding not counted."""

    def request(self, outcome: str, seconds: float) -> None:
        """A request ended so long after its submission.

        ``ok``; ``busy``: refused for want of room; ``timeout``; ``cancelled``; ``closed``: refused or
        given up by a closed batcher; ``error``: a text refused, or that the model failed on.
        """


class Teller:
    """Calls an observer, whose faults are not the batcher's.

    Args:
        observer: None where nobody listens.
    """

    def __init__(self, observer: Observer | None) -> None:
        self._observer = observer
        self._lock = threading.RLock()
        self._failed = False

    def queue(self, depth: Callable[[], tuple[int, int]]) -> None:
        """Tell the depth, read where no other thread can tell a newer one before it."""
        self._tell(lambda observer: observer.queue(*depth()))

    def batch(self, texts: int, tokens: int, seconds: float) -> None:
        """See :meth:`Observer.batch`."""
        self._tell(lambda observer: observer.batch(texts, tokens, seconds))

    def request(self, outcome: str, seconds: float) -> None:
        """See :meth:`Observer.request`."""
        self._tell(lambda observer: observer.request(outcome, seconds))

    def _tell(self, what: Callable[[Observer], None]) -> None:
        if self._observer is None:
            return
        with self._lock:
            try:
                what(self._observer)
            except Exception:
                if not self._failed:
                    self._failed = True
                    log.exception("the batcher's observer failed; later failures are not logged")
