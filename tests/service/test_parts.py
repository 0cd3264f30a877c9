"""Parts of examples/service where a socket would not show a fault."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from examples.service.__main__ import bind
from examples.service.errors import ServiceError
from examples.service.feed import SHORT, Feed
from examples.service.inputs import Call
from examples.service.settings import Settings
from tests.service.conftest import PATIENCE


class Queue:
    """In a batcher's place: it keeps what it is given, until a test answers."""

    def __init__(self) -> None:
        self.queued: list[Future[Any]] = []
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def submit(self, _: str, **__: object) -> Future[Any]:
        """As a batcher's."""
        self.entered.set()
        assert self.go_on.wait(PATIENCE)
        self.queued.append(Future())
        return self.queued[-1]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(("most_waiting", "most_chars"), [(3, 10**9), (10**9, 30)])
def test_a_request_has_only_its_part_of_the_queue(most_waiting: int, most_chars: int) -> None:
    async def feed() -> list[Any]:
        queue = Queue()
        feeding = Feed(queue, most_waiting, most_chars, 1, PATIENCE)  # type: ignore[arg-type]
        answers = asyncio.create_task(feeding.answers(Call(["x" * 10] * 7)))
        for answered in range(7):
            await until(lambda answered=answered: len(queue.queued) == min(7, answered + 3))  # type: ignore[misc]
            await asyncio.sleep(0)  # it would queue more at once
            assert len(queue.queued) == min(7, answered + 3)
            queue.queued[answered].set_result(answered)
        feeding.close()
        return await answers

    assert asyncio.run(asyncio.wait_for(feed(), PATIENCE)) == list(range(7))


def test_answers_that_are_too_large_are_not_computed_to_the_end() -> None:
    async def feed(each: int) -> tuple[list[Any], Queue]:
        queue = Queue()
        feeding = Feed(queue, 3, 10**9, 100, PATIENCE)  # type: ignore[arg-type]
        answers = asyncio.create_task(feeding.answers(Call(["x"] * 4)))
        await until(lambda: len(queue.queued) == 3)
        queue.queued[0].set_result(np.zeros((each, 10)))
        await until(lambda: answers.done() or len(queue.queued) == 4)
        for future in queue.queued[1:]:
            if not future.cancelled():
                future.set_result(np.zeros((each, 10)))
        feeding.close()
        if each == 11:
            with pytest.raises(ServiceError, match="more than 100 numbers, 110 before all 4 texts") as refusal:
                await answers
            assert (refusal.value.status, refusal.value.error["type"]) == (413, "answer_too_large")
            return [], queue
        return await answers, queue

    answers, queue = asyncio.run(asyncio.wait_for(feed(2), PATIENCE))
    assert (len(answers), len(queue.queued)) == (4, 4)
    _, queue = asyncio.run(asyncio.wait_for(feed(11), PATIENCE))
    assert [future.cancelled() for future in queue.queued] == [False, True, True]


def test_a_text_queued_after_its_request_was_cancelled_is_taken_back() -> None:
    async def feed() -> Future[Any]:
        queue = Queue()
        queue.go_on.clear()
        feeding = Feed(queue, 10, 10**9, 1, PATIENCE)  # type: ignore[arg-type]
        answers = asyncio.create_task(feeding.answers(Call(["x" * (SHORT + 1)])))
        await until(queue.entered.is_set)  # on a thread, where it cannot be cancelled
        answers.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answers
        queue.go_on.set()
        await until(lambda: len(queue.queued) == 1 and queue.queued[0].done())
        feeding.close()
        return queue.queued[0]

    assert asyncio.run(asyncio.wait_for(feed(), PATIENCE)).cancelled()


def test_answers_are_not_held_back_by_nagles_delay() -> None:
    """asyncio turns it off for sockets whose protocol is named, and an accepted one has its listener's."""
    sockets = bind(Settings(bundle="unused", listen="127.0.0.1:0"))
    try:
        assert [one.proto for one in sockets] == [socket.IPPROTO_TCP]
    finally:
        for one in sockets:
            one.close()
