"""What a batcher holds: requests from submission to answer, in a bounded first-in, first-out queue."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, Protocol

from mbexport.errors import BackendError, BusyError, ClosedError, DeadlineError, MbexportError
from mbexport.runtime.answers import Prepared

log = logging.getLogger(__name__)


class Observer(Protocol):
    """What a batcher tells of itself, on the thread where it happens: be quick, and never wait for the batcher.

    What it raises is logged, the first time, and changes nothing else.
    """

    def queue(self, texts: int, tokens: int) -> None:
        """The queue's depth, whenever it changes: texts (those being tokenized, too) and tokens."""

    def batch(self, texts: int, tokens: int, seconds: float) -> None:
        """A forward pass was done, of so many texts and tokens, padding not counted."""

    def request(self, outcome: str, seconds: float) -> None:
        """A request ended so long after its submission: ``ok``, ``busy``, ``timeout``, ``cancelled``, ``error``
        (also of a text that was refused) or ``closed``."""


@dataclass(frozen=True)
class Limits:
    """Of a batcher, as :class:`mbexport.runtime.Batcher` describes them."""

    max_tokens: int
    max_delay: float
    max_waiting: int
    max_waiting_tokens: int


class Request(Future[Any]):
    """One text's answer to come. It can be cancelled until it is answered, also while the model runs."""

    def __init__(self, pending: Pending, timeout: float | None) -> None:
        super().__init__()
        self.submitted = time.monotonic()
        self.timeout = timeout
        self.deadline = None if timeout is None else self.submitted + timeout
        self.queued = self.submitted
        self.prepared: Prepared | None = None  # while it waits
        self.tokens = 0
        self.claimed = False  # its end is decided
        self._pending = pending

    def cancel(self) -> bool:
        """Give it up: False where it is answered, or just being answered."""
        if not self._pending.claim(self):
            return self.cancelled()
        super().cancel()
        self.set_running_or_notify_cancel()  # who waits for several futures hears of it by this
        self._pending.tell_end(self, "cancelled")
        return True


class Pending:
    """All requests that have no answer yet. Safe to use from several threads.

    Every request ends once: who ends it must claim it first. Nothing of a caller's (callbacks of
    futures, the observer) runs while the lock is held.

    Attributes:
        texts: that wait, those being tokenized counted.
        tokens: that wait.
        fault: why the backend is dead, None while it lives.
        closing: nothing more is taken.
        over: nothing more is computed; ``ended`` once every caller knows.
    """

    def __init__(self, limits: Limits, observer: Observer | None) -> None:
        self.limits = limits
        self.tokens = 0
        self.fault: BackendError | None = None
        self.closing = False
        self.over = False
        self.ended = threading.Event()
        self.lock = threading.RLock()
        self.arrived = threading.Condition(self.lock)  # there is something to compute, or nothing more to come
        self.earlier = threading.Condition(self.lock)  # the next deadline may be another
        self.checks: list[Future[None]] = []
        self._queue: OrderedDict[Request, Prepared] = OrderedDict()
        self._tokenizing = 0
        self._live: set[Request] = set()  # all that are not claimed
        self._running: set[Request] = set()
        self._observer = observer
        self._telling = threading.RLock()
        self._observer_failed = False

    @property
    def texts(self) -> int:
        """Texts that wait, those being tokenized counted."""
        return self._tokenizing + len(self._queue)

    def admit(self, timeout: float | None) -> Request:
        """A request that may be tokenized, for :meth:`put` or :meth:`drop`.

        Raises:
            BusyError, ClosedError, BackendError: it is not taken.
        """
        request = Request(self, timeout)
        with self.lock:
            error = self.refusal() or self._full(0)
            if error is None:
                self._tokenizing += 1
                self._live.add(request)
                if request.deadline is not None:
                    self.earlier.notify()
        if error is not None:
            self.refuse(request, error)
            raise error
        self.tell_queue()
        return request

    def put(self, request: Request, prepared: Prepared | None) -> None:
        """Queue an admitted request, tokenized; one that has ended is dropped.

        Raises:
            BusyError: it has more tokens than there is room for; it is to be dropped.
        """
        with self.lock:
            if prepared is not None and not request.claimed:
                error = self._full(prepared.tokens)
                if error is not None:
                    raise error
                request.prepared, request.tokens, request.queued = prepared, prepared.tokens, time.monotonic()
                self._queue[request] = prepared
                self.tokens += request.tokens
            self._tokenizing -= 1
            self.arrived.notify_all()
        self.tell_queue()

    def drop(self) -> None:
        """An admitted request will not be queued; its end is another matter."""
        with self.lock:
            self._tokenizing -= 1
            self.arrived.notify_all()
        self.tell_queue()

    def refuse(self, request: Request, error: BaseException) -> None:
        """A request ends before its caller has a future of it: the caller gets the error itself."""
        if self.claim(request):
            self.tell_end(request, _outcome(error))

    def take(self) -> list[Request] | None:
        """Wait for the next batch: requests to answer, none where a check is wanted, None where all is done."""
        with self.lock:
            while True:
                if self.fault is not None:
                    return None
                if self.checks:
                    return []
                wait: float | None = None
                if self._queue:
                    wait = next(iter(self._queue)).queued + self.limits.max_delay - time.monotonic()
                    if wait <= 0 or self.closing or self.tokens >= self.limits.max_tokens:
                        batch = self._pop_batch()
                        break
                elif self.closing and not self._tokenizing:
                    return None
                self.arrived.wait(wait)
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
            if not past(request, now):  # else its end is the clock's work
                self._running.add(request)
                batch.append(request)
                tokens += request.tokens
        return batch

    def _unqueue(self, request: Request) -> None:
        if self._queue.pop(request, None) is not None:
            self.tokens -= request.tokens

    def claim(self, request: Request) -> bool:
        """The right to end a request, given once; it waits no more."""
        with self.lock:
            if request.claimed:
                return False
            request.claimed = True
            self._unqueue(request)
            request.prepared = None
            self._live.discard(request)
            self._running.discard(request)
            return True

    def finish(self, request: Request, answer: Any = None, error: BaseException | None = None) -> None:
        """End a request, unless it has ended."""
        if not self.claim(request):
            return
        self.tell_end(request, _outcome(error))
        try:
            if error is None:
                request.set_result(answer)
            else:
                request.set_exception(error)
        except InvalidStateError:  # somebody else has set the caller's future
            pass
        except BaseException:  # of a callback of the future's; Exceptions are logged by the future
            if threading.current_thread() is threading.main_thread():
                raise
            log.exception("a callback of a request failed")

    def finish_all(self, error: Callable[[], MbexportError], *, running: bool = True) -> None:
        """End all requests with an error, each with its own: what is raised twice mixes up its tracebacks."""
        with self.lock:
            requests = [request for request in self._live if running or request not in self._running]
        for request in requests:
            self.finish(request, error=error())
        self.tell_queue()

    def expire(self) -> None:
        """End what is past its deadline."""
        now = time.monotonic()
        with self.lock:
            late = [request for request in self._live if past(request, now)]
            waiting = self.texts
        for request in late:
            message = f"no answer within {request.timeout:g} s ({waiting} texts waiting); allow more time, or send less"
            self.finish(request, error=DeadlineError(message))
        if late:
            self.tell_queue()

    def wait_for_deadline(self) -> bool:
        """Wait until a deadline has passed, or may be an earlier one; False where no more will come."""
        with self.lock:
            deadlines = [request.deadline for request in self._live if request.deadline is not None]
            if not self.over:
                self.earlier.wait(max(0.0, min(deadlines) - time.monotonic()) if deadlines else None)
            return not self.over

    def refusal(self) -> MbexportError | None:
        """Why nothing is taken any more."""
        if self.fault is not None:
            return dead(self.fault)
        if self.closing:
            return ClosedError("the batcher is closed and takes no more texts")
        return None

    def _full(self, tokens: int) -> BusyError | None:
        """Why there is no room for a text, 0 tokens before they are known; a queue of none takes one of any length."""
        limits = self.limits
        if tokens == 0 and self.texts >= limits.max_waiting:
            return BusyError(f"{self.texts} texts wait, the limit is {limits.max_waiting}; try again later")
        if self.tokens and self.tokens + max(tokens, 1) > limits.max_waiting_tokens:
            wanted = f", this text has {tokens}" if tokens else ""
            limit = f"the limit is {limits.max_waiting_tokens}{wanted}; try again later"
            return BusyError(f"{self.tokens} tokens wait, {limit}")
        return None

    def tell_queue(self) -> None:
        """Tell the observer the queue's depth: what it hears last is what is."""
        self.tell(lambda observer: observer.queue(self.texts, self.tokens))

    def tell_end(self, request: Request, outcome: str) -> None:
        """Tell the observer how a request ended."""
        seconds = time.monotonic() - request.submitted
        self.tell(lambda observer: observer.request(outcome, seconds))

    def tell(self, what: Callable[[Observer], None]) -> None:
        """Call the observer, whose faults are not the callers'."""
        if self._observer is None:
            return
        with self._telling:
            try:
                what(self._observer)
            except Exception:
                if not self._observer_failed:
                    self._observer_failed = True
                    log.exception("the batcher's observer failed; later failures are not logged")


def past(request: Request, now: float) -> bool:
    """Whether a request's deadline has passed."""
    return request.deadline is not None and request.deadline <= now


def dead(fault: BackendError) -> BackendError:
    """An error of its own for each caller of a dead backend."""
    error = BackendError(str(fault))
    error.__cause__ = fault
    return error


def tokens_of(requests: Iterable[Request]) -> int:
    """Tokens of them all."""
    return sum(request.tokens for request in requests)


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    kinds = {BusyError: "busy", DeadlineError: "timeout", ClosedError: "closed"}
    return next((outcome for kind, outcome in kinds.items() if isinstance(error, kind)), "error")
