"""A batcher's threads: one computes, one keeps the deadlines, a few tokenize for event loops."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from mbexport.errors import BackendError, ClosedError
from mbexport.runtime.model import Model
from mbexport.runtime.requests import Pending, Request, dead

EXIT_SECONDS = 10.0  # that a process which ends waits for what was taken
TOKENIZER_THREADS = 2


class Worker:
    """Computes what is pending, until it is closed or the backend is dead.

    Attributes:
        last_success: time.monotonic() of the last forward pass that succeeded.
        busy_since: time.monotonic() of the start of the forward pass now running.
        process: id of the process that has the threads.
    """

    def __init__(self, model: Model, pending: Pending) -> None:
        self.last_success: float | None = None
        self.busy_since: float | None = None
        self.process = os.getpid()
        self._model = model
        self._pending = pending
        self._tokenizers: ThreadPoolExecutor | None = None
        # Daemons: a device that hangs must not keep the process from ending; exit() sees to what was taken.
        computing = threading.Thread(target=self._compute, name="mbexport-batcher", daemon=True)
        keeping_time = threading.Thread(target=self._keep_time, name="mbexport-batcher-clock", daemon=True)
        self._threads = (computing, keeping_time)
        atexit.register(self.exit)
        try:
            computing.start()
            keeping_time.start()
        except BaseException:  # no more threads can be had
            atexit.unregister(self.exit)
            self.stop()
            raise

    @property
    def is_here(self) -> bool:
        """Whether this process has the threads; a forked one has not."""
        return self.process == os.getpid()

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller, a callback, is on one of the threads, which must not wait for themselves."""
        return threading.current_thread() in self._threads

    @property
    def tokenizers(self) -> ThreadPoolExecutor:
        """Threads that tokenize for callers that must not wait."""
        with self._pending.lock:
            if self._tokenizers is None:
                self._tokenizers = ThreadPoolExecutor(TOKENIZER_THREADS, "mbexport-tokenizer")
            return self._tokenizers

    def close(self, *, drain: bool, timeout: float | None) -> None:
        """As :meth:`mbexport.runtime.Batcher.close`."""
        self.stop(drain=drain)
        seconds = None if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        if self.is_current_thread or self._pending.ended.wait(seconds):
            return
        late = f"the batcher was closed and had not finished after {timeout:g} s ({self._doing()})"
        self._pending.finish_all(lambda: ClosedError(late))

    def stop(self, *, drain: bool = True) -> None:
        """Take no more, without waiting."""
        if not self.is_here:  # its locks may be held for ever
            return
        self._pending.end(closing=True)
        if not drain:
            self._pending.finish_all(lambda: ClosedError("the batcher was closed, this text waited"), running=False)
        if self._tokenizers is not None:
            self._tokenizers.shutdown(wait=False)

    def exit(self) -> None:
        """The process ends: finish what was taken, but never hang."""
        if self.is_here:
            self.close(drain=True, timeout=EXIT_SECONDS)

    def check(self, timeout: float) -> None:
        """As :meth:`mbexport.runtime.Batcher.check`."""
        pending = self._pending
        check: Future[None] = Future()
        with pending.lock:
            refusal = pending.refusal() if pending.over or pending.fault else None
            if refusal is not None:
                raise refusal
            pending.checks.append(check)
            pending.arrived.notify()
        try:
            answered = wait([check], min(timeout, threading.TIMEOUT_MAX)).done
        finally:
            with pending.lock:
                if check in pending.checks:
                    pending.checks.remove(check)
        if not answered:
            raise BackendError(f"the backend did not answer a check within {timeout:g} s ({self._doing()})")
        check.result()

    def _doing(self) -> str:
        since = self.busy_since
        return "no forward pass runs" if since is None else f"a forward pass runs for {time.monotonic() - since:.1f} s"

    def _compute(self) -> None:
        pending = self._pending
        try:
            while self._turn():
                pass
        except BaseException as cause:  # whatever it is, callers wait for this thread
            self._die(BackendError(f"the batcher's thread ended by {type(cause).__name__}: {cause}"), cause)
        pending.end(closing=True, over=True)
        self._answer_checks()
        pending.finish_all(lambda: ClosedError("the batcher has ended"))
        pending.ended.set()
        atexit.unregister(self.exit)

    def _turn(self) -> bool:
        """One batch, and the checks that came with it; False where there will be no more."""
        batch = self._pending.take()
        if batch is None or not self._answer(batch):
            return False
        if not self._pending.checks:
            return True
        alive = self._alive()
        self._answer_checks()
        return alive

    def _answer(self, batch: list[Request]) -> bool:
        """Answer a batch, in halves where it fails as a whole; False where the backend is dead."""
        parts = [batch]
        while parts:
            part = parts.pop()
            failure = self._forward(part)
            if failure is None:
                continue
            if not self._alive():
                return False
            if len(part) == 1:
                self._pending.finish(part[0], error=failure)
                continue
            left = [request for request in part if not request.claimed]
            middle = (len(left) + 1) // 2
            parts += [half for half in (left[middle:], left[:middle]) if half]  # the first half is next
        return True

    def _forward(self, batch: Sequence[Request]) -> Exception | None:
        """Answer a batch in one call of the model; why not all of it could be."""
        start = time.monotonic()
        prepared = ((request, request.prepared) for request in batch)
        todo = [(request, item) for request, item in prepared if item is not None]  # None once it has ended
        if not todo:
            return None
        self.busy_since = start
        answered: set[int] = set()
        try:
            for number, answer in self._model.answers([item for _, item in todo]):
                answered.add(number)
                self._pending.finish(todo[number][0], answer)
        except Exception as failure:
            return failure
        finally:
            self.busy_since = None
        if len(answered) < len(todo):
            return BackendError(f"the model gave {len(answered)} answers to {len(todo)} texts")
        self.last_success = time.monotonic()
        tokens = sum(item.tokens for _, item in todo)
        self._pending.teller.batch(len(todo), tokens, self.last_success - start)
        return None

    def _alive(self) -> bool:
        """Whether the backend still computes; if not, every caller hears of it."""
        self.busy_since = time.monotonic()
        try:
            self._model.check()
        except Exception as cause:
            self._die(BackendError(f"the backend is dead, load the model again: {cause}"), cause)
            return False
        finally:
            self.busy_since = None
        self.last_success = time.monotonic()
        return True

    def _answer_checks(self) -> None:
        pending = self._pending
        with pending.lock:
            checks, pending.checks = pending.checks, []
        for check in checks:
            error = pending.refusal() if pending.fault or pending.over else None
            if error is None:
                check.set_result(None)
            else:
                check.set_exception(error)

    def _die(self, fault: BackendError, cause: BaseException) -> None:
        fault.__cause__ = cause
        self._pending.end(fault=fault)
        self._pending.finish_all(lambda: dead(fault))

    def _keep_time(self) -> None:
        try:
            while self._pending.wait_for_deadline():
                self._pending.expire()
        except BaseException as cause:  # without deadlines callers might wait for ever
            self._die(BackendError(f"the batcher's clock ended by {type(cause).__name__}: {cause}"), cause)
