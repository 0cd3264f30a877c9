"""A batcher's threads: one computes, one keeps the deadlines."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from mbexport.errors import BackendError, ClosedError, MbexportError
from mbexport.runtime.answers import Prepared
from mbexport.runtime.model import Model
from mbexport.runtime.requests import Pending, Request, dead, tokens_of

EXIT_SECONDS = 10.0  # that a process which ends waits for what was taken
TOKENIZER_THREADS = 2  # for callers that await


class Worker:
    """Computes what is pending, until it is closed or the backend is dead.

    Attributes:
        last_success: time.monotonic() of the last forward pass that succeeded.
        busy_since: time.monotonic() of the start of the forward pass now running.
    """

    def __init__(self, model: Model, pending: Pending) -> None:
        self.last_success: float | None = None
        self.busy_since: float | None = None
        self.process = os.getpid()
        self._model = model
        self._pending = pending
        self._tokenizers: ThreadPoolExecutor | None = None
        self._threads = [
            threading.Thread(target=self._compute, name="mbexport-batcher", daemon=True),
            threading.Thread(target=self._keep_time, name="mbexport-batcher-clock", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        atexit.register(self.exit)

    @property
    def is_here(self) -> bool:
        """Whether this process has the threads; a forked one has not."""
        return self.process == os.getpid()

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller, a callback, is on one of the threads, which must not wait for themselves."""
        return threading.current_thread() in self._threads

    def tokenizers(self) -> ThreadPoolExecutor:
        """Threads that tokenize for callers that must not wait."""
        with self._pending.lock:
            if self._tokenizers is None:
                self._tokenizers = ThreadPoolExecutor(TOKENIZER_THREADS, "mbexport-tokenizer")
            return self._tokenizers

    def close(self, *, drain: bool, timeout: float | None) -> None:
        """As :meth:`mbexport.runtime.Batcher.close`."""
        self.stop(drain=drain)
        if self.is_current_thread or self._pending.ended.wait(timeout):
            return
        busy = "" if self.busy_since is None else f", in a forward pass of {time.monotonic() - self.busy_since:.1f} s"
        self._pending.finish_all(lambda: ClosedError(f"the batcher was closed and did not end in {timeout:g} s{busy}"))

    def stop(self, *, drain: bool = True) -> None:
        """Take no more, without waiting."""
        pending = self._pending
        with pending.lock:
            pending.closing = True
            pending.arrived.notify_all()
        if not drain:
            pending.finish_all(lambda: ClosedError("the batcher was closed before this was computed"), running=False)
        if self._tokenizers is not None:
            self._tokenizers.shutdown(wait=False)

    def exit(self) -> None:
        """The process ends: finish what was taken, but never hang."""
        if self.is_here:
            self.close(drain=True, timeout=EXIT_SECONDS)

    def _compute(self) -> None:
        pending = self._pending
        try:
            while self._turn():
                pass
        except BaseException as cause:  # whatever it is, callers wait for this thread
            self._die(BackendError(f"the batcher's thread ended by {type(cause).__name__}: {cause}"), cause)
        finally:
            with pending.lock:
                pending.closing = pending.over = True
                checks, pending.checks = pending.checks, []
                pending.earlier.notify_all()
            for check in checks:
                _answer_check(check, pending.refusal())
            pending.finish_all(lambda: ClosedError("the batcher has ended"))
            pending.ended.set()
            atexit.unregister(self.exit)

    def _turn(self) -> bool:
        """One batch or check; False where there will be no more."""
        batch = self._pending.take()
        if batch is None:
            return False
        return self._answer(batch) if batch else self._check_for_callers()

    def _answer(self, batch: list[Request]) -> bool:
        """Answer a batch, in halves where it fails as a whole; False where the backend is dead."""
        parts = [batch]
        while parts:
            part = parts.pop()
            failure = self._forward(part)
            if failure is None:
                continue
            left = [request for request in part if not request.claimed]
            if not self._alive():
                return False
            if len(part) == 1:
                self._pending.finish(part[0], error=failure)
            elif left:
                middle = (len(left) + 1) // 2
                parts += [half for half in (left[middle:], left[:middle]) if half]
        return True

    def _forward(self, batch: Sequence[Request]) -> Exception | None:
        """Answer a batch in one call of the model; why not all of it could be."""
        todo: list[tuple[Request, Prepared]] = []
        now = time.monotonic()
        for request in batch:
            prepared = request.prepared  # None once it has ended
            if prepared is not None and not (request.deadline is not None and request.deadline <= now):
                todo.append((request, prepared))
        if not todo:
            return None
        self.busy_since = now
        try:
            given = 0
            for number, answer in self._model.answers([prepared for _, prepared in todo]):
                given += 1
                self._pending.finish(todo[number][0], answer)
            if given < len(todo):
                return BackendError(f"the model gave {given} answers to {len(todo)} texts")
        except Exception as failure:
            return failure
        finally:
            self.busy_since = None
        self.last_success = time.monotonic()
        tokens, seconds = tokens_of(request for request, _ in todo), self.last_success - now
        self._pending.tell(lambda observer: observer.batch(len(todo), tokens, seconds))
        return None

    def _alive(self) -> bool:
        """Whether the backend still computes; if not, every caller hears of it."""
        self.busy_since = time.monotonic()
        try:
            self._model.check()
        except Exception as cause:
            self._die(BackendError(f"the backend is dead: {cause}; load the model again"), cause)
            return False
        finally:
            self.busy_since = None
        self.last_success = time.monotonic()
        return True

    def _die(self, fault: BackendError, cause: BaseException) -> None:
        fault.__cause__ = cause
        with self._pending.lock:
            self._pending.fault = fault
        self._pending.finish_all(lambda: dead(fault))

    def check(self, timeout: float) -> None:
        """As :meth:`mbexport.runtime.Batcher.check`."""
        pending = self._pending
        check: Future[None] = Future()
        with pending.lock:
            refusal = pending.refusal() if pending.over or pending.fault else None
            if refusal is not None:
                raise refusal
            pending.checks.append(check)
            pending.arrived.notify_all()
        try:
            done = wait([check], timeout).done
        finally:
            with pending.lock:
                if check in pending.checks:
                    pending.checks.remove(check)
        if not done:
            busy = self.busy_since
            doing = "no pass runs" if busy is None else f"a forward pass runs since {time.monotonic() - busy:.1f} s"
            raise BackendError(f"the backend did not answer a check within {timeout:g} s: {doing}")
        check.result()

    def _check_for_callers(self) -> bool:
        """One forward pass for all checks that are wanted."""
        with self._pending.lock:
            checks, self._pending.checks = self._pending.checks, []
        alive = self._alive()
        for check in checks:
            _answer_check(check, None if alive else self._pending.refusal())
        return alive

    def _keep_time(self) -> None:
        while self._pending.wait_for_deadline():
            self._pending.expire()


def _answer_check(check: Future[Any], error: MbexportError | None) -> None:
    if error is None:
        check.set_result(None)
    else:
        check.set_exception(error)
