"""What waits and what runs together: the batcher's queue, with a model that a test can hold."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import pytest

from mbexport.errors import BusyError, ClosedError, InputError
from mbexport.runtime import Batcher
from mbexport.runtime.batch_worker import TOKENIZER_THREADS
from mbexport.runtime.observer import Teller
from mbexport.runtime.requests import CHARACTERS, Limits, Pending, Request
from tests.batching import PATIENCE, Record, StandIn, held


@pytest.fixture
def model() -> StandIn:
    return StandIn()


def test_what_waits_runs_together_in_order_within_the_budget(model: StandIn) -> None:
    with held(model, max_tokens=5) as batcher:
        texts = ["a b", "c d", "e f", "g h i j k l m", "n", "o p q r", "s"]
        futures = [batcher.submit(text) for text in texts]
        assert (batcher.waiting, batcher.waiting_tokens) == (7, 19)
        model.go.set()
        assert [future.result(PATIENCE) for future in futures] == [text.upper() for text in texts]
    # "e f" does not fit, and "n" does not overtake; the longest is above the budget, and runs alone
    assert model.passes == [["first"], ["a b", "c d"], ["e f"], ["g h i j k l m"], ["n", "o p q r"], ["s"]]


def test_a_batch_takes_the_models_own_number_of_tokens(model: StandIn) -> None:
    with held(model) as batcher:
        futures = [batcher.submit("a b c") for _ in range(4)]
        model.go.set()
        wait(futures, PATIENCE)
    assert [len(texts) for texts in model.passes] == [1, 2, 2]


def test_prompts_and_options_reach_the_model(model: StandIn) -> None:
    with Batcher(model) as batcher:  # type: ignore[arg-type]
        assert batcher("a text", prompt_name="query") == "QUERY A TEXT"
        assert asyncio.run(batcher.answer("a text", prompt_name="query")) == "QUERY A TEXT"


def test_a_full_batch_does_not_wait_for_the_delay(model: StandIn) -> None:
    with Batcher(model, max_tokens=4, max_delay=1000) as batcher:  # type: ignore[arg-type]
        futures = [batcher.submit("a b") for _ in range(2)]
        assert [future.result(PATIENCE) for future in futures] == ["A B"] * 2
        assert model.passes == [["a b", "a b"]]
        futures = [batcher.submit("a b c") for _ in range(2)]  # the second does not fit
        assert futures[0].result(PATIENCE) == "A B C"
        assert not futures[1].done()
    assert futures[1].result(0) == "A B C"  # close() does not wait for the delay, either


def test_a_batch_waits_for_others_during_the_delay(model: StandIn) -> None:
    batcher = Batcher(model, max_delay=1000)  # type: ignore[arg-type]
    futures = [batcher.submit(text) for text in ("a", "b", "c")]
    assert model.passes == []
    batcher.close()
    assert [future.result(0) for future in futures] == ["A", "B", "C"]
    assert model.passes == [["a", "b", "c"]]


def test_the_delay_is_bounded(model: StandIn) -> None:
    with Batcher(model, max_delay=0.05) as batcher:  # type: ignore[arg-type]
        assert batcher.submit("a").result(PATIENCE) == "A"


def test_the_delay_counts_from_when_a_text_was_queued(model: StandIn) -> None:
    pending = Pending(Limits(100, 1000.0, 10, 100), Teller(None))
    request = Request(pending, 1, None)
    pending.admit(request)
    pending.put(request, model.prepare(["a"])[0])
    request.queued -= 1001  # it waited while another batch ran
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(pending.take).result(PATIENCE) == [request]


def test_too_many_texts_are_refused_before_they_are_tokenized(model: StandIn) -> None:
    with held(model, max_waiting=3) as batcher:
        futures = [batcher.submit(text) for text in "abc"]
        with pytest.raises(BusyError, match="3 texts wait, which is the limit; try again later"):
            batcher.submit("d")
        with pytest.raises(BusyError):
            batcher("d")
        with pytest.raises(BusyError):
            asyncio.run(batcher.answer("d"))
        assert model.tokenized == ["first", "a", "b", "c"]
        model.go.set()
        wait(futures, PATIENCE)
        assert batcher("d") == "D"


def test_texts_being_tokenized_count(model: StandIn) -> None:
    model.tokenize.clear()
    with Batcher(model, max_waiting=2) as batcher, ThreadPoolExecutor(1) as pool:  # type: ignore[arg-type]
        by_thread = pool.submit(batcher, "slow thread")

        async def third_is_refused() -> Any:
            by_task = asyncio.ensure_future(batcher.answer("slow task"))
            while batcher.waiting < 2:
                await asyncio.sleep(0)  # the event loop is not blocked, and the thread comes up
            with pytest.raises(BusyError, match="2 texts wait"):
                await batcher.answer("third")
            model.tokenize.set()
            return await by_task

        assert asyncio.run(asyncio.wait_for(third_is_refused(), PATIENCE)) == "SLOW TASK"
        assert by_thread.result(PATIENCE) == "SLOW THREAD"
        assert batcher.waiting == 0


def test_what_is_cancelled_counts_until_it_is_tokenized(model: StandIn) -> None:
    model.tokenize.clear()
    with Batcher(model, max_waiting=1) as batcher:  # type: ignore[arg-type]

        async def cancelled() -> None:
            task = asyncio.ensure_future(batcher.answer("slow"))
            while not batcher.waiting:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(asyncio.wait_for(cancelled(), PATIENCE))
        with pytest.raises(BusyError):  # its text is still in memory
            batcher.submit("b")
        model.tokenize.set()
    assert model.passes == []


def test_what_is_cancelled_is_not_tokenized(model: StandIn) -> None:
    model.tokenize.clear()
    with Batcher(model) as batcher:  # type: ignore[arg-type]

        async def cancelled() -> list[str]:
            slow = [asyncio.ensure_future(batcher.answer("slow")) for _ in range(TOKENIZER_THREADS)]
            given_up = asyncio.ensure_future(batcher.answer("given up"))
            while batcher.waiting < len(slow) + 1:
                await asyncio.sleep(0)
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            model.tokenize.set()
            return await asyncio.gather(*slow)

        asyncio.run(asyncio.wait_for(cancelled(), PATIENCE))
    assert model.tokenized == ["slow"] * TOKENIZER_THREADS


def test_too_many_tokens_are_refused(model: StandIn) -> None:
    with held(model, max_waiting_tokens=5) as batcher:
        batcher.submit("a b c")
        with pytest.raises(BusyError, match="3 tokens wait, the limit is 5; try again later"):
            batcher.submit("d e f")  # known when it is tokenized
        assert model.tokenized[-1] == "d e f"
        batcher.submit("g h")
        with pytest.raises(BusyError, match="5 tokens wait"):
            batcher.submit("i")
        assert "i" not in model.tokenized
        with pytest.raises(BusyError):
            asyncio.run(batcher.answer("i"))
        assert (batcher.waiting, batcher.waiting_tokens) == (2, 5)
        model.go.set()
    assert model.passes == [["first"], ["a b c", "g h"]]


def test_a_task_is_refused_for_its_tokens_too(model: StandIn) -> None:
    with held(model, max_waiting_tokens=5) as batcher:
        batcher.submit("a b c")
        with pytest.raises(BusyError, match="3 tokens wait"):
            asyncio.run(batcher.answer("d e f"))
        assert batcher.waiting == 1
        model.go.set()


def test_a_text_above_the_limit_is_taken_where_nothing_waits(model: StandIn) -> None:
    with held(model, max_waiting_tokens=3) as batcher:
        future = batcher.submit("a b c d e f g h i j k")
        with pytest.raises(BusyError):
            batcher.submit("l")
        model.go.set()
        assert future.result(PATIENCE).startswith("A B")


def test_what_a_tokenizer_would_cut_off_is_bounded(model: StandIn) -> None:
    long = "x" * (2 * CHARACTERS)
    with held(model, max_waiting_tokens=3) as batcher:
        batcher.submit("a")
        with pytest.raises(
            BusyError, match=f"with this text {1 + 3 * CHARACTERS} characters would wait, the limit is {3 * CHARACTERS}"
        ):
            batcher.submit(long + "x" * CHARACTERS)
        future = batcher.submit(long)
        with pytest.raises(BusyError, match="characters"):
            batcher.submit(long)
        future.cancel()
        batcher.submit(long)
        model.go.set()
    for _ in range(3):  # and nothing of it is left behind
        with Batcher(model, max_waiting_tokens=3) as batcher:  # type: ignore[arg-type]
            assert batcher(long * 100) == long.upper() * 100
            with pytest.raises(InputError):
                batcher("bad")
            assert batcher._pending._characters == 0


def test_a_bad_text_fails_in_its_caller_and_takes_no_place(model: StandIn) -> None:
    record = Record()
    with Batcher(model, max_waiting=1, observer=record) as batcher:  # type: ignore[arg-type]
        for _ in range(3):
            with pytest.raises(InputError, match="is bad"):
                batcher.submit("bad")
            with pytest.raises(InputError, match="is bad"):
                asyncio.run(batcher.answer("bad"))
        assert batcher("good") == "GOOD"
    assert record.outcomes == ["error"] * 6 + ["ok"]
    assert record.depths[-1] == (0, 0)


def test_the_observer_hears_everything(model: StandIn) -> None:
    record = Record()
    with held(model, max_waiting=2, observer=record) as batcher:
        first, second = batcher.submit("a b"), batcher.submit("c")
        with pytest.raises(BusyError):
            batcher.submit("d")
        assert record.depths[-1] == (2, 3)
        assert second.cancel()
        assert record.depths[-1] == (1, 2)
    with pytest.raises(ClosedError, match="takes no more texts"):
        batcher.submit("e")
    assert first.result(0) == "A B"
    assert record.batches == [(1, 1), (1, 2)]
    assert record.outcomes == ["busy", "cancelled", "ok", "ok", "closed"]
    assert record.depths[-1] == (0, 0)
    assert all(seconds >= 0 for seconds in record.seconds)


def test_an_observer_that_fails_is_logged_once_and_breaks_nothing(
    model: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise ZeroDivisionError(name)

    with Batcher(model, observer=Broken()) as batcher:  # type: ignore[arg-type]
        assert [batcher(text) for text in "abc"] == ["A", "B", "C"]
        assert asyncio.run(batcher.answer("d")) == "D"
    assert [record.message for record in caplog.records] == [
        "the batcher's observer failed; later failures are not logged"
    ]


def test_many_threads_and_few_places(model: StandIn) -> None:
    """What is refused is sent again, and each gets its own answer, each text runs once."""
    with Batcher(model, max_waiting=4, max_waiting_tokens=20) as batcher:  # type: ignore[arg-type]
        seen: list[tuple[int, int]] = []

        def ask(text: str) -> str:
            answer = None
            while answer is None:
                seen.append((batcher.waiting, batcher.waiting_tokens))
                with suppress(BusyError):
                    answer = batcher(text)
            return str(answer)

        texts = [f"text {number} {'x ' * (number % 5)}".strip() for number in range(400)]
        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(ask, texts)) == [text.upper() for text in texts]
        assert all(texts <= 4 and tokens <= 20 for texts, tokens in seen)
    assert sorted(text for texts in model.passes for text in texts) == sorted(texts)
    assert threading.active_count() < 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0, expected a whole number from 1"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5"),
        ({"max_waiting": True}, "max_waiting is True"),
        ({"max_waiting_tokens": -1}, "max_waiting_tokens is -1"),
        ({"max_delay": -0.1}, "max_delay is -0.1, expected seconds from 0"),
        ({"max_delay": float("nan")}, "max_delay is nan"),
        ({"timeout": 0}, "timeout is 0, expected seconds above 0"),
        ({"timeout": "1"}, "timeout is '1'"),
    ],
)
def test_limits_that_are_none(options: dict[str, Any], message: str, model: StandIn) -> None:
    before = threading.active_count()
    with pytest.raises(InputError, match=message):
        Batcher(model, **options)  # type: ignore[arg-type]
    assert threading.active_count() <= before


def test_a_depth_is_not_told_after_a_newer_one() -> None:
    observer = Record()
    teller = Teller(observer)
    newer = threading.Thread(target=teller.queue, args=(lambda: (2, 2),))

    def older() -> tuple[int, int]:
        newer.start()
        newer.join(0.2)  # it waits for this one to be told
        return 1, 1

    teller.queue(older)
    newer.join()
    assert observer.depths == [(1, 1), (2, 2)]
