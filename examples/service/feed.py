"""The texts of one request through the batcher, a few at a time, so that others get their turn."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from mbexport.errors import BusyError, DeadlineError, InputError
from mbexport.runtime import Batcher

from .errors import ServiceError
from .inputs import Call

SHORT = 2000  # characters that are tokenized sooner than a thread is asked to
RETRY_SECONDS = 0.05  # between two attempts to queue the rest of a request that has begun


class Feed:
    """Requests' texts into a batcher's queue.

    Args:
        batcher: that computes them.
        most_waiting: texts of one request that may be queued at a time.
        most_chars: characters of those, though one longer text goes alone.
        timeout: seconds for a whole request.
    """

    def __init__(self, batcher: Batcher, most_waiting: int, most_chars: int, timeout: float) -> None:
        self.batcher, self.most_waiting, self.most_chars, self.timeout = batcher, most_waiting, most_chars, timeout
        self._threads = ThreadPoolExecutor(2, "tokenize")

    async def answers(self, call: Call) -> list[Any]:
        """All answers, in order, or none. Cancelled, it takes back what is queued.

        A full queue refuses a request that has not begun; one that has is not refused any more, but waits.

        Raises:
            BusyError: the queue is full.
            DeadlineError: not all was answered in time.
            ServiceError: a text is not what the model takes, by its number.
            BackendError: a forward pass failed.
        """
        end = time.monotonic() + self.timeout
        answers: list[Any] = [None] * len(call.items)
        pending: dict[asyncio.Future[Any], int] = {}
        chars = 0
        try:
            for number, item in enumerate(call.items):
                size = _size(item)
                while pending and (len(pending) >= self.most_waiting or chars + size > self.most_chars):
                    chars -= await self._collect(pending, answers, call.items)
                while (queued := await self._submit(call, number, end)) is None:
                    chars -= await self._collect(pending, answers, call.items, RETRY_SECONDS)
                pending[asyncio.wrap_future(queued)] = number
                chars += size
            while pending:
                await self._collect(pending, answers, call.items)
        finally:
            for future in pending:
                if not future.cancel() and not future.cancelled():
                    future.exception()  # else asyncio logs that nobody asked
        return answers

    async def _collect(
        self,
        pending: dict[asyncio.Future[Any], int],
        answers: list[Any],
        items: list[Any],
        timeout: float | None = None,
    ) -> int:
        """Take what is answered, waiting for one at least; the characters of what was taken."""
        if not pending:
            await asyncio.sleep(timeout or 0)
            return 0
        done, _ = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        chars = 0
        for future in done:
            number = pending.pop(future)
            answers[number] = future.result()
            chars += _size(items[number])
        return chars

    async def _submit(self, call: Call, number: int, end: float) -> Future[Any] | None:
        """Queue an item; None where there is no room for one that is not the first."""
        item, left = call.items[number], end - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"item {number} of {len(call.items)} was still to be queued after {self.timeout:g} s")
        submit = partial(
            self.batcher.submit, item, prompt_name=call.prompt_name, truncate_dim=call.truncate_dim, timeout=left
        )
        try:
            if _size(item) <= SHORT:
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


def _size(item: Any) -> int:
    """Characters of an item."""
    return len(item) if isinstance(item, str) else sum(_size(part) for part in item)
