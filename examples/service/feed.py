"""The texts of one request through the batcher, a few at a time, so that others get their turn."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from mbexport.errors import BusyError, DeadlineError, InputError, NotFiniteError
from mbexport.runtime import Batcher
from mbexport.runtime.answers import characters

from .errors import ServiceError
from .inputs import Call

SHORT = 2000  # characters that are tokenized sooner than a thread is asked to
RETRY_SECONDS = 0.05  # between two attempts to queue the rest of a request that has begun


@dataclass
class _Running:
    """A request that is being answered."""

    call: Call
    answers: list[Any]
    pending: dict[asyncio.Future[Any], int] = field(default_factory=dict)
    chars: int = 0  # of what is pending
    numbers: int = 0  # in vectors of the answers


class Feed:
    """Requests' texts into a batcher's queue.

    Args:
        batcher: that computes them.
        most_waiting: texts of one request that may be queued at a time.
        most_chars: characters of those, though one longer text goes alone.
        most_numbers: in the vectors of one request's answers.
        timeout: seconds for a whole request.
    """

    def __init__(self, batcher: Batcher, most_waiting: int, most_chars: int, most_numbers: int, timeout: float) -> None:
        self.batcher, self.timeout = batcher, timeout
        self.most_waiting, self.most_chars, self.most_numbers = most_waiting, most_chars, most_numbers
        self._threads = ThreadPoolExecutor(2, "tokenize")

    async def answers(self, call: Call) -> list[Any]:
        """All answers, in order, or none. Cancelled, it takes back what is queued.

        A full queue refuses a request that has not begun; one that has is not refused any more, but waits.

        Raises:
            BusyError: the queue is full.
            DeadlineError: not all was answered in time.
            ServiceError: a text is not what the model takes, by its number, or the answers are too large.
            BackendError: a forward pass failed.
        """
        end = time.monotonic() + self.timeout
        running = _Running(call, [None] * len(call.items))
        pending = running.pending
        try:
            for number, item in enumerate(call.items):
                size = characters(item)
                while pending and (len(pending) >= self.most_waiting or running.chars + size > self.most_chars):
                    await self._collect(running)
                while (queued := await self._submit(call, number, end)) is None:
                    await self._collect(running, RETRY_SECONDS)
                pending[asyncio.wrap_future(queued)] = number
                running.chars += size
            while pending:
                await self._collect(running)
        finally:
            for future in pending:
                if not future.cancel() and not future.cancelled():
                    future.exception()  # else asyncio logs that nobody asked
        return running.answers

    async def _collect(self, running: _Running, timeout: float | None = None) -> None:
        """Take what is answered, waiting for one at least."""
        if not running.pending:
            await asyncio.sleep(timeout or 0)
            return
        done, _ = await asyncio.wait(running.pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for future in done:
            number = running.pending.pop(future)
            try:
                answer = running.answers[number] = future.result()
            except NotFiniteError as cause:
                raise ServiceError(500, "not_finite", f"item {number}: {cause}") from cause
            running.chars -= characters(running.call.items[number])
            running.numbers += answer.size if isinstance(answer, np.ndarray) else 0
        if running.numbers > self.most_numbers:
            message = f"the answers hold more than {self.most_numbers} numbers, {running.numbers} before all "
            message += f"{len(running.answers)} texts were answered; send fewer at a time, or set MBEXPORT_MAX_NUMBERS"
            raise ServiceError(413, "answer_too_large", message)

    async def _submit(self, call: Call, number: int, end: float) -> Future[Any] | None:
        """Queue an item; None where there is no room for one that is not the first."""
        item, left = call.items[number], end - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"item {number} of {len(call.items)} was still to be queued after {self.timeout:g} s")
        submit = partial(
            self.batcher.submit, item, prompt_name=call.prompt_name, truncate_dim=call.truncate_dim, timeout=left
        )
        try:
            if characters(item) <= SHORT:
                return submit()
            job = asyncio.get_running_loop().run_in_executor(self._threads, submit)
            try:
                return await asyncio.shield(job)
            except asyncio.CancelledError:
                job.add_done_callback(_take_back)
                raise
        except BusyError:
            if number == 0:
                raise
            return None
        except InputError as cause:
            fault = {"item": number, "message": str(cause)}
            raise ServiceError(422, "invalid_texts", f"item {number}: {cause}", items=[fault]) from cause

    def close(self) -> None:
        """Take no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _take_back(job: asyncio.Future[Future[Any]]) -> None:
    if not job.cancelled() and job.exception() is None:
        job.result().cancel()
