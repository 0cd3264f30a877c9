"""One loaded model for many callers: each sends one text, and texts that wait together run together."""

from __future__ import annotations

import math
import weakref
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from mbexport.errors import BackendError, ClosedError, InputError
from mbexport.runtime.answers import characters
from mbexport.runtime.batch_worker import Worker
from mbexport.runtime.model import Model
from mbexport.runtime.observer import Observer, Teller
from mbexport.runtime.requests import Limits, Pending, Request, outcome_of

WAITING_BATCHES = 4  # that may wait, where no limit is given: of a CPU the work of about a second


class Batcher:
    """Answers single texts from many threads and event loops by batches of one model.

    A thread of its own takes what waits, first come, first served: the first text always, and more
    while they have no more than ``max_tokens`` together. A text is tokenized by its caller's thread
    before it waits, so one that cannot be is refused there. If a batch fails, its halves are tried,
    so that only a text that fails alone gets the error; if the backend no longer computes at all,
    every caller gets a BackendError, those to come, too.

    What it holds is bounded: the texts and tokens that wait, one batch, and nothing of what ended.
    It belongs to the process that made it. One that nobody refers to any more finishes what it
    took; so does a process that ends, for a few seconds at most.

    Args:
        model: what answers; other callers may use it, too, and compete with the batcher then.
        max_tokens: of one batch, padding not counted; None takes the model's ``batch_tokens``. A
            longer text runs alone.
        max_delay: seconds that a text may wait, while nothing is computed, for others to fill its batch.
        max_waiting: texts that may wait, those being tokenized counted.
        max_waiting_tokens: tokens that may wait; None takes those of 4 batches. A longer text is
            taken where nothing else waits. So are characters, 32 for each of these tokens: what is
            cut off a text stays in memory until it runs.
        timeout: seconds from submission to answer, for calls that give none; None for no limit.
        observer: hears of depth, batches and outcomes, e.g. ``prometheus.PrometheusObserver``.

    Raises:
        InputError: a limit is no such number.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_tokens: int | None = None,
        max_delay: float = 0.0,
        max_waiting: int = 1024,
        max_waiting_tokens: int | None = None,
        timeout: float | None = None,
        observer: Observer | None = None,
    ) -> None:
        batch = model.batch_tokens if max_tokens is None else _count("max_tokens", max_tokens)
        waiting = WAITING_BATCHES * batch if max_waiting_tokens is None else max_waiting_tokens
        if not (isinstance(max_delay, (int, float)) and 0 <= max_delay < math.inf):
            raise InputError(f"max_delay is {max_delay!r}, expected seconds from 0")
        limits = Limits(batch, max_delay, _count("max_waiting", max_waiting), _count("max_waiting_tokens", waiting))
        self._model = model
        self._timeout = _seconds(timeout)
        self._pending = Pending(limits, Teller(observer))
        self._worker = Worker(model, self._pending)
        weakref.finalize(self, self._worker.stop).atexit = False

    def submit(
        self,
        text: Any,
        *,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        timeout: float | None = None,
    ) -> Future[Any]:
        """Queue a text; the future gives its answer.

        ``cancel()`` works until there is an answer, also while the model runs. Callbacks of the future
        may submit; they must be quick and never wait for another answer.

        Args:
            text: one item, as :meth:`mbexport.runtime.Model.__call__` takes several.
            prompt_name: see :meth:`mbexport.runtime.Model.embed`.
            truncate_dim: see :meth:`mbexport.runtime.Model.embed`.
            timeout: seconds from now; None takes the batcher's, infinity none.

        Raises:
            InputError: it is no text, or not what the task takes; no such prompt; no such timeout.
            BusyError: too much waits already; try again later.
            ClosedError: the batcher is closed, or of another process.
            BackendError: the backend is dead.

            The future raises BackendError (or what else the model raised on this text alone),
            DeadlineError, ClosedError where the batcher was closed without finishing it, or
            concurrent.futures.CancelledError.
        """
        request = self._request(text, timeout)
        try:
            self._pending.admit(request)
            self._pending.put(request, self._model.prepare([text], prompt_name, truncate_dim)[0])
        except BaseException as error:  # KeyboardInterrupt, too: a place in the queue would be lost
            self._refuse(request, error)
            raise
        return request

    def __call__(
        self,
        text: Any,
        *,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The answer to one text, for threads that may wait.

        Args:
            text: see :meth:`submit`.
            prompt_name: see :meth:`submit`.
            truncate_dim: see :meth:`submit`.
            timeout: see :meth:`submit`.

        Returns:
            What the model gives for it in a call of its own.

        Raises:
            InputError, BusyError, ClosedError, BackendError, DeadlineError: see :meth:`submit`.
        """
        if self._worker.is_current_thread:
            raise InputError("a callback on the batcher's own thread would wait for itself; use submit() there")
        request = self.submit(text, prompt_name=prompt_name, truncate_dim=truncate_dim, timeout=timeout)
        try:
            return request.result()
        except BaseException:  # e.g. KeyboardInterrupt: nobody waits for the answer
            request.cancel()
            raise
        finally:
            del request  # it holds the error, which holds this frame

    async def answer(
        self,
        text: Any,
        *,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The answer to one text, for any event loop; it is tokenized on a thread of the batcher's.

        A task that is cancelled cancels its request.

        Args:
            text: see :meth:`submit`.
            prompt_name: see :meth:`submit`.
            truncate_dim: see :meth:`submit`.
            timeout: see :meth:`submit`; it holds while the text is tokenized, too.

        Raises:
            InputError, BusyError, ClosedError, BackendError, DeadlineError: see :meth:`submit`.
        """
        import asyncio  # here: programs without an event loop start sooner

        request = self._request(text, timeout)
        try:
            self._pending.admit(request)
            self._worker.tokenizers.submit(self._tokenize, request, text, prompt_name, truncate_dim)
        except BaseException as error:
            self._refuse(request, error)
            if isinstance(error, RuntimeError):  # of the pool
                raise ClosedError("the batcher was closed, or the process ends") from error
            raise
        try:
            return await asyncio.wrap_future(request)  # which passes a task's cancelling on
        finally:
            del request  # it holds the error, which holds this frame

    def close(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more, and wait until what was taken is done. Any number of threads may call it.

        In an event loop, ``await asyncio.to_thread(batcher.close)`` lets the loop go on. A callback on
        the batcher's own thread does not wait.

        Args:
            drain: whether texts that wait are answered; else their callers get a ClosedError, and
                only the batch that is being computed is finished.
            timeout: seconds after which all that is left gets a ClosedError, e.g. where a device
                hangs; its thread is then left to itself. None waits as long as it takes.
        """
        if self._worker.is_here:
            self._worker.close(drain=drain, timeout=timeout)

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def check(self, timeout: float) -> None:
        """Have the model run once, on one token, between batches: whether the device really computes.

        Args:
            timeout: seconds to wait for it.

        Raises:
            BackendError: it fails (then the batcher is dead, too), or does not answer in time.
            ClosedError: the batcher has ended.
        """
        self._check_process()
        if self._worker.is_current_thread:
            raise InputError("a callback on the batcher's own thread would wait for itself; check on another")
        self._worker.check(timeout)

    @property
    def waiting(self) -> int:
        """Texts that wait, those being tokenized counted."""
        return self._pending.texts

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait."""
        return self._pending.tokens

    @property
    def fault(self) -> BackendError | None:
        """Why the backend is dead; None while it lives."""
        return self._pending.fault

    @property
    def last_success(self) -> float | None:
        """time.monotonic() of the last forward pass that succeeded, None before the first."""
        return self._worker.last_success

    @property
    def busy_since(self) -> float | None:
        """time.monotonic() of the start of the forward pass now running, None where none runs."""
        return self._worker.busy_since

    def _request(self, text: Any, timeout: float | None) -> Request:
        self._check_process()
        limit = self._timeout if timeout is None else _seconds(timeout)
        return Request(self._pending, characters(text), None if limit == math.inf else limit)

    def _refuse(self, request: Request, error: BaseException) -> None:
        """End a request that its caller has no future of: the error is raised to the caller."""
        self._pending.drop(request)
        if self._pending.claim(request):
            self._pending.tell_end(request, outcome_of(error))

    def _check_process(self) -> None:
        if not self._worker.is_here:
            raise ClosedError(
                f"this batcher is of process {self._worker.process}, and its threads are not in this one, forked "
                "from it; load the model and make a batcher in each process"
            )

    def _tokenize(self, request: Request, text: Any, prompt_name: str | None, truncate_dim: int | None) -> None:
        """For a caller that awaits: tokenize and queue, or end the request with the error."""
        try:
            prepared = None if request.claimed else self._model.prepare([text], prompt_name, truncate_dim)[0]
            self._pending.put(request, prepared)
        except BaseException as error:  # a panic of the tokenizer's is no Exception, and somebody awaits
            self._pending.drop(request)
            self._pending.finish(request, error=error)


def _count(name: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise InputError(f"{name} is {value!r}, expected a whole number from 1, or None")
    return value


def _seconds(timeout: float | None) -> float | None:
    if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
        raise InputError(f"timeout is {timeout!r}, expected seconds above 0, or None")
    return timeout
