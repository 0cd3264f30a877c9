"""What a batcher holds: requests from submission to their end, in a bounded first-in, first-out queue."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any

from mbexport.errors import BackendError, BusyError, ClosedError, DeadlineError, MbexportError
from mbexport.runtime.answers import Prepared
from mbexport.runtime.observer import Teller

log = logging.getLogger(__name__)

CHARACTERS = 32  # for each token that may wait: texts stay in memory whole, also what is cut off their tokens
LONGEST_SLEEP = 60.0  # seconds; a notice can be missed only where Python collects garbage inside a lock


@dataclass(frozen=True)
class Limits:
    """Of a batcher, as :class:`mbexport.runtime.Batcher` describes them."""

    max_tokens: int
    max_delay: float
    max_waiting: int
    max_waiting_tokens: int


class Request(Future[Any]):
    """The answer to one text, to come. It can be cancelled until it is answered, also while the model runs.

    Args:
        pending: where it waits.
        characters: of the text.
        timeout: seconds from now in which it is answered, None for no limit.
    """

    def __init__(self, pending: Pending, characters: int, timeout: float | None) -> None:
        super().__init__()
        self.submitted = self.queued = time.monotonic()
        self.timeout = timeout
        self.deadline = None if timeout is None else self.submitted + timeout
        self.characters = characters
        self.prepared: Prepared | None = None  # from being queued to its end
        self.tokens = 0
        self.claimed = False  # its end is decided
        self.left_queue = False  # it never ran
        self._pending = pending

    def cancel(self) -> bool:
        """Give it up: False where it is answered, or just being answered."""
        if not self._pending.claim(self):
            return self.cancelled()
        super().cancel()
        self.set_running_or_notify_cancel()  # who waits for several futures hears of it by this
        self._pending.tell_end(self, "cancelled")
        return True

    def past(self, now: float) -> bool:
        """Whether its deadline has passed."""
        return self.deadline is not None and self.deadline <= now


class Pending:
    """All requests that have not ended. Safe to use from several threads.

    A request ends once: who ends it claims it first. Nothing of a caller's (callbacks of futures,
    the observer) runs while the lock is held.

    Attributes:
        tokens: that wait.
        fault: why the backend is dead, None while it lives.
        closing: nothing more is taken.
        over: nothing more is computed; ``ended`` once every caller knows.
        checks: of the backend, that callers wait for.
        arrived: notified where the thread that computes may have something to do.
    """

    def __init__(self, limits: Limits, teller: Teller) -> None:
        self.limits = limits
        self.teller = teller
        self.tokens = 0
        self.fault: BackendError | None = None
        self.closing = False
        self.over = False
        self.ended = threading.Event()
        self.checks: list[Future[None]] = []
        self.lock = threading.RLock()  # a signal's handler may come back to it
        self.arrived = threading.Condition(self.lock)
        self._earlier = threading.Condition(self.lock)  # the next deadline may be another
        self._next_look = 0.0  # at the deadlines, by time.monotonic()
        self._live: set[Request] = set()  # all that are not claimed
        self._tokenizing: set[Request] = set()  # claimed ones, too: they take memory until they are done
        self._queue: OrderedDict[Request, None] = OrderedDict()
        self._running: set[Request] = set()
        self._characters = 0  # of what is tokenized and queued

    @property
    def texts(self) -> int:
        """Texts that wait, those being tokenized counted."""
        return len(self._tokenizing) + len(self._queue)

    def admit(self, request: Request) -> None:
        """Let a request be tokenized; :meth:`put` or :meth:`drop` is to follow.

        Raises:
            BusyError, ClosedError, BackendError: it is not taken.
        """
        with self.lock:
            error = self.refusal() or self._full(request)
            if error is not None:
                raise error
            self._tokenizing.add(request)
            self._characters += request.characters
            self._live.add(request)
            if request.deadline is not None and request.deadline < self._next_look:
                self._earlier.notify()
        self.tell_queue()

    def put(self, request: Request, prepared: Prepared | None) -> None:
        """Queue an admitted request, tokenized; one that has ended is dropped.

        Raises:
            BusyError: it has more tokens than there is room for; :meth:`drop` is to follow.
        """
        with self.lock:
            if prepared is None or request.claimed:
                self._drop(request)
            else:
                error = self._crowded(prepared.tokens)
                if error is not None:
                    raise error
                request.prepared, request.tokens, request.queued = prepared, prepared.tokens, time.monotonic()
                self._tokenizing.discard(request)
                self._queue[request] = None
                self.tokens += request.tokens
                self.arrived.notify()
        self.tell_queue()

    def drop(self, request: Request) -> None:
        """A request will not be queued; its end is another matter."""
        with self.lock:
            dropped = self._drop(request)
        if dropped:
            self.tell_queue()

    def _drop(self, request: Request) -> bool:
        if request not in self._tokenizing:
            return False
        self._tokenizing.discard(request)
        self._characters -= request.characters
        self.arrived.notify()
        return True

    def _unqueue(self, request: Request) -> bool:
        if request not in self._queue:
            return False
        del self._queue[request]
        self.tokens -= request.tokens
        self._characters -= request.characters
        return True

    def take(self) -> list[Request] | None:
        """Wait for work: the next batch, none where only a check is wanted, None where all is done."""
        with self.lock:
            while True:
                if self.fault is not None:
                    return None
                wait = LONGEST_SLEEP
                if self._queue:
                    wait = next(iter(self._queue)).queued + self.limits.max_delay - time.monotonic()
                    if wait <= 0 or self.closing or self.tokens >= self.limits.max_tokens:
                        batch = self._pop_batch()
                        break
                elif self.closing and not self._tokenizing:
                    return None
                if self.checks:
                    return []
                self.arrived.wait(min(wait, LONGEST_SLEEP))
        self.tell_queue()
        return batch

    def _pop_batch(self) -> list[Request]:
        batch: list[Request] = []
        tokens, now = 0, time.monotonic()
        while self._queue:
            request = next(iter(self._queue))
            if batch and tokens + request.tokens > self.limits.max_tokens:
                break
            self._unqueue(request)
            if not request.past(now):  # else expire() ends it
                self._running.add(request)
                batch.append(request)
                tokens += request.tokens
        return batch

    def claim(self, request: Request) -> bool:
        """The right to end a request, given once; it waits no more."""
        with self.lock:
            if request.claimed:
                return False
            request.claimed = True
            request.left_queue = self._unqueue(request)
            request.prepared = None
            self._live.discard(request)
            self._running.discard(request)
            return True

    def finish(self, request: Request, answer: Any = None, error: BaseException | None = None) -> None:
        """End a request, unless it has ended."""
        if not self.claim(request):
            return
        self.tell_end(request, outcome_of(error))
        try:
            with contextlib.suppress(InvalidStateError):  # the caller has set its future itself
                if error is None:
                    request.set_result(answer)
                else:
                    request.set_exception(error)
        except BaseException:  # of a callback of the future's, which logs an Exception itself
            if threading.current_thread() is threading.main_thread():
                raise
            log.exception("a callback of a request's future failed")

    def finish_all(self, error: Callable[[], MbexportError], *, running: bool = True) -> None:
        """End all requests, each with an error of its own: one that is raised twice mixes up its tracebacks."""
        with self.lock:
            requests = [request for request in self._live if running or request not in self._running]
        for request in requests:
            self.finish(request, error=error())

    def expire(self) -> None:
        """End what is past its deadline."""
        now = time.monotonic()
        with self.lock:
            late = {request: request in self._running for request in self._live if request.past(now)}
            waiting = self.texts
        for request, running in late.items():
            where = "the model was computing it" if running else f"{waiting} texts waited"
            self.finish(request, error=DeadlineError(f"no answer within {request.timeout:g} s: {where}"))

    def wait_for_deadline(self) -> bool:
        """Wait until a deadline has passed, or there may be an earlier one; False where no more will come."""
        with self.lock:
            now = time.monotonic()
            deadlines = (request.deadline for request in self._live if request.deadline is not None)
            self._next_look = min(deadlines, default=now + LONGEST_SLEEP)
            if not self.over:
                self._earlier.wait(min(max(0.0, self._next_look - now), LONGEST_SLEEP))
            return not self.over

    def end(self, *, fault: BackendError | None = None, closing: bool = False, over: bool = False) -> None:
        """Go one step towards the end, and wake who waits for work."""
        with self.lock:
            self.fault = self.fault or fault
            self.closing = self.closing or closing
            self.over = self.over or over
            self.arrived.notify()
            self._earlier.notify()

    def refusal(self) -> MbexportError | None:
        """Why nothing is taken any more."""
        if self.fault is not None:
            return dead(self.fault)
        return ClosedError("the batcher is closed and takes no more texts") if self.closing else None

    def _full(self, request: Request) -> BusyError | None:
        """Why there is no room for a text that is not tokenized yet."""
        limits, characters = self.limits, self._characters + request.characters
        if self.texts >= limits.max_waiting:
            return BusyError(f"{self.texts} texts wait, which is the limit; try again later")
        if self.texts and characters > CHARACTERS * limits.max_waiting_tokens:
            most = CHARACTERS * limits.max_waiting_tokens
            return BusyError(f"with this text {characters} characters would wait, the limit is {most}; try again later")
        return self._crowded(1)

    def _crowded(self, tokens: int) -> BusyError | None:
        """Why there is no room for so many tokens; where none wait, any number may."""
        limit = self.limits.max_waiting_tokens
        if not self.tokens or self.tokens + tokens <= limit:
            return None
        return BusyError(f"{self.tokens} tokens wait, the limit is {limit}; try again later")

    def tell_queue(self) -> None:
        """Tell the observer the depth."""
        self.teller.queue(lambda: (self.texts, self.tokens))

    def tell_end(self, request: Request, outcome: str) -> None:
        """Tell the observer how a request ended, and the depth where it waited."""
        if request.left_queue:
            self.tell_queue()
        self.teller.request(outcome, time.monotonic() - request.submitted)


def dead(fault: BackendError) -> BackendError:
    """An error of its own for each caller of a dead backend."""
    error = BackendError(str(fault))
    error.__cause__ = fault
    return error


def outcome_of(error: BaseException | None) -> str:
    """How the observer is told of a request's end."""
    if error is None:
        return "ok"
    kinds = {BusyError: "busy", DeadlineError: "timeout", ClosedError: "closed"}
    return next((outcome for kind, outcome in kinds.items() if isinstance(error, kind)), "error")
