"""How requests and batchers end: deadlines, cancelling, poison, a dead or hanging backend, close, exit, fork."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mbexport.errors import BackendError, BusyError, ClosedError, DeadlineError, InputError
from mbexport.runtime import Batcher
from mbexport.runtime.requests import Pending
from tests.batching import PATIENCE, Record, StandIn, held


@pytest.fixture
def model() -> StandIn:
    return StandIn()


def batcher_of(model: StandIn, **options: Any) -> Batcher:
    return Batcher(model, **options)  # type: ignore[arg-type]


# Deadlines


def test_nobody_waits_beyond_the_deadline_of_a_device_that_hangs(model: StandIn) -> None:
    record = Record()
    with held(model, observer=record, timeout=0.1) as batcher:
        futures = [batcher.submit("waits"), batcher.submit("too", timeout=0.05)]
        endless = batcher.submit("endless", timeout=float("inf"))
        for future in futures:
            with pytest.raises(DeadlineError, match=r"no answer within 0\.(1|05) s: \d texts waited"):
                future.result(PATIENCE)
        with pytest.raises(TimeoutError):
            batcher("sync")
        with pytest.raises(DeadlineError):
            asyncio.run(batcher.answer("task"))
        assert (batcher.waiting, endless.done()) == (1, False)
        assert record.outcomes == ["timeout"] * 5  # with the first, which the model has
    assert endless.result(0) == "ENDLESS"
    assert model.passes == [["first"], ["endless"]]  # the others cost nothing


def test_the_deadline_of_what_the_model_computes(model: StandIn) -> None:
    model.go.clear()
    with batcher_of(model) as batcher:
        future = batcher.submit("a", timeout=0.1)
        with pytest.raises(DeadlineError, match=r"within 0\.1 s: the model was computing it"):
            future.result(PATIENCE)
        model.go.set()
        assert batcher("b") == "B"


def test_a_later_call_may_have_an_earlier_deadline(model: StandIn) -> None:
    with held(model) as batcher:
        late = batcher.submit("late", timeout=1000)
        time.sleep(0.05)  # the clock waits for it now
        with pytest.raises(DeadlineError):
            batcher.submit("soon", timeout=0.05).result(PATIENCE)
        assert not late.done()


def test_a_deadline_holds_while_a_task_is_tokenized(model: StandIn) -> None:
    model.tokenize.clear()
    with batcher_of(model) as batcher:
        with pytest.raises(DeadlineError):
            asyncio.run(batcher.answer("slow", timeout=0.05))
        model.tokenize.set()
    assert model.passes == []


def test_very_long_times_are_no_fault(model: StandIn) -> None:
    batcher = batcher_of(model, timeout=1e300, max_delay=1e300)
    future = batcher.submit("a")
    batcher.check(1e300)
    batcher.close(timeout=1e300)
    assert future.result(0) == "A"


def test_what_is_too_late_costs_no_forward_pass(model: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = threading.Event()
    monkeypatch.setattr(Pending, "expire", lambda _: seen.wait(PATIENCE))  # a clock that is late
    with held(model) as batcher:
        late, kept = batcher.submit("late", timeout=1e-3), batcher.submit("kept")
        time.sleep(0.01)
        model.go.set()
        assert kept.result(PATIENCE) == "KEPT"
        assert not late.done()
        monkeypatch.undo()
        seen.set()
        with pytest.raises(DeadlineError):
            late.result(PATIENCE)
    assert model.passes == [["first"], ["kept"]]


# Cancelling


def test_cancelled_before_it_runs(model: StandIn) -> None:
    record = Record()
    with held(model, max_waiting=2, observer=record) as batcher:
        given_up, kept = batcher.submit("given up"), batcher.submit("kept")
        assert given_up.cancel()
        assert given_up.cancel()  # as with any future
        assert given_up.cancelled()
        assert wait([given_up, kept], PATIENCE, FIRST_COMPLETED).done == {given_up}
        assert batcher.waiting == 1
        batcher.submit("its place")
    assert model.passes == [["first"], ["kept", "its place"]]
    assert record.outcomes == ["cancelled", "ok", "ok", "ok"]
    assert not kept.cancel()
    assert kept.result(0) == "KEPT"


def test_cancelled_while_it_runs(model: StandIn) -> None:
    with held(model) as batcher:
        batch = [batcher.submit(text) for text in "abc"]
        model.started.clear()
        model.go.set()
        model.go.clear()
        assert model.started.wait(PATIENCE)
        assert batch[1].cancel()
        assert batch[1] in wait(batch, PATIENCE, FIRST_COMPLETED).done
        model.go.set()
        assert [batch[0].result(PATIENCE), batch[2].result(PATIENCE)] == ["A", "C"]
        with pytest.raises(CancelledError):
            batch[1].result(0)


def test_a_cancelled_task_cancels_its_request(model: StandIn) -> None:
    with held(model) as batcher:

        async def cancel_one() -> None:
            tasks = [asyncio.ensure_future(batcher.answer(text)) for text in ("given up", "kept")]
            while batcher.waiting_tokens < 3:
                await asyncio.sleep(0)
            tasks[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            assert batcher.waiting == 1
            model.go.set()
            assert await tasks[1] == "KEPT"

        asyncio.run(asyncio.wait_for(cancel_one(), PATIENCE))
    assert model.passes == [["first"], ["kept"]]


def test_an_interrupted_caller_leaves_nothing_behind() -> None:
    script = """
import os, signal, threading
from tests.batching import StandIn, held
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in processes of the background
with held(StandIn()) as batcher:
    noticed = threading.Event()
    def interrupt():
        while not batcher.waiting_tokens:
            pass
        os.kill(os.getpid(), signal.SIGINT)
        while not noticed.wait(5):  # Python loses a signal that comes just before a thread begins to wait
            os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        batcher("never computed")
    except KeyboardInterrupt:
        noticed.set()
        print(batcher.waiting)
"""
    assert run_script(script) == "0"


# Poison


@pytest.mark.parametrize("failure", [None, InputError("too long for the engine"), ValueError("any other")])
def test_a_poisoned_text_fails_alone(failure: Exception | None, model: StandIn) -> None:
    model.failure = failure
    record = Record()
    with held(model, max_tokens=64, observer=record) as batcher:
        texts = [f"text{number}" for number in range(16)]
        texts[5] = "poison"
        futures = [batcher.submit(text) for text in texts]
        model.go.set()
        for text, future in zip(texts, futures, strict=True):
            if text == "poison":
                with pytest.raises(type(failure) if failure else BackendError, match=str(failure or "poison cannot")):
                    future.result(PATIENCE)
            else:
                assert future.result(PATIENCE) == text.upper()
        assert batcher.fault is None
        assert batcher("after") == "AFTER"
    assert record.outcomes.count("ok") == 17
    assert record.outcomes.count("error") == 1
    # The first pass answered text15 to text6 before it failed: they do not run again, the others in halves.
    assert [len(texts) for texts in model.passes] == [1, 16, 3, 3, 2, 1, 1]


def test_all_poisoned(model: StandIn) -> None:
    with held(model) as batcher:
        futures = [batcher.submit(f"poison{number}") for number in range(8)]
        model.go.set()
        for number, future in enumerate(futures):
            with pytest.raises(BackendError, match=f"poison{number} cannot"):
                future.result(PATIENCE)
        assert batcher("after") == "AFTER"


def test_a_model_that_loses_answers(model: StandIn) -> None:
    model.answers_lost = 1
    with held(model) as batcher:
        futures = [batcher.submit(text) for text in "abc"]
        model.go.set()
        with pytest.raises(BackendError, match="the model gave 0 answers to 1 texts"):
            futures[0].result(PATIENCE)
        assert [future.result(PATIENCE) for future in futures[1:]] == ["B", "C"]


# A dead backend


def test_when_the_backend_dies_every_caller_gets_the_error(model: StandIn) -> None:
    record = Record()
    with held(model, observer=record) as batcher, ThreadPoolExecutor(20) as pool:

        async def several() -> list[Any]:
            return await asyncio.gather(*[batcher.answer("x") for _ in range(10)], return_exceptions=True)

        waiting: list[Future[Any]] = [batcher.submit("x") for _ in range(50)]
        waiting += [pool.submit(batcher, "x", timeout=1000) for _ in range(10)]
        tasks = pool.submit(asyncio.run, several())
        while batcher.waiting_tokens < 70:
            time.sleep(0.001)
        model.dead = True
        model.go.set()
        errors = [future.exception(PATIENCE) for future in waiting] + tasks.result(PATIENCE)
        assert {str(error) for error in errors} == {"the backend is dead, load the model again: the device is lost"}
        assert {type(error) for error in errors} == {BackendError}
        assert len({id(error) for error in errors}) == len(errors)  # raised in many threads
        assert len(model.passes) == 1
        assert batcher.fault is not None
        for call in (batcher, batcher.submit, lambda text: asyncio.run(batcher.answer(text))):
            with pytest.raises(BackendError, match="the device is lost"):
                call("later")
        with pytest.raises(BackendError, match="the device is lost"):
            batcher.check(PATIENCE)
        assert (batcher.waiting, batcher.waiting_tokens) == (0, 0)
    assert set(record.outcomes) == {"error"}


@pytest.mark.parametrize("death", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_when_the_thread_dies_every_caller_gets_the_error(
    death: type[BaseException], model: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(model) as batcher:
        futures = [batcher.submit("a") for _ in range(20)]

        def dies(_: object) -> Any:
            raise death("unexpected")

        monkeypatch.setattr(model, "answers", dies)
        model.go.set()
        for future in futures:
            with pytest.raises(BackendError, match=f"thread ended by {death.__name__}: unexpected"):
                future.result(PATIENCE)
        with pytest.raises(BackendError):
            batcher("later")


def test_when_the_clock_dies_every_caller_gets_the_error(model: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(_: Pending) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(Pending, "expire", no_memory)
    with held(model) as batcher:
        future = batcher.submit("a", timeout=0.01)
        with pytest.raises(BackendError, match="clock ended by MemoryError: none left"):
            future.result(PATIENCE)


def test_a_panic_while_a_task_is_tokenized(model: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):  # as PyO3's
        pass

    def panics(*_: object) -> Any:
        raise Panic("in the tokenizer")

    with batcher_of(model) as batcher:
        monkeypatch.setattr(model, "prepare", panics)
        with pytest.raises(Panic):
            asyncio.run(asyncio.wait_for(batcher.answer("a"), PATIENCE))
        with pytest.raises(Panic):
            batcher("a")
        assert batcher.waiting == 0


# Checks


def test_a_check_runs_on_the_batchers_thread_between_batches(model: StandIn) -> None:
    with held(model) as batcher:
        future = batcher.submit("later")
        with pytest.raises(BackendError, match=r"did not answer a check within 0\.01 s \(a forward pass runs for"):
            batcher.check(0.01)
        assert batcher.busy_since is not None
        assert batcher.last_success is None
        with ThreadPoolExecutor(8) as pool:
            checks = [pool.submit(batcher.check, PATIENCE) for _ in range(8)]
            while len(batcher._pending.checks) < 8:
                time.sleep(0.001)
            model.go.set()
            for check in checks:
                check.result(PATIENCE)
        assert model.checks == ["mbexport-batcher"]  # one for all
        assert future.result(PATIENCE) == "LATER"
        before = time.monotonic()
        batcher.check(PATIENCE)
        assert batcher.last_success is not None
        assert batcher.last_success >= before
        assert batcher.busy_since is None
    with pytest.raises(ClosedError):
        batcher.check(PATIENCE)


def test_a_check_finds_a_dead_backend(model: StandIn) -> None:
    with batcher_of(model) as batcher:
        model.dead = True
        with pytest.raises(BackendError, match="the device is lost"):
            batcher.check(PATIENCE)
        assert "the device is lost" in str(batcher.fault)
        with pytest.raises(BackendError):
            batcher.submit("a")


def test_checks_do_not_keep_texts_waiting(model: StandIn) -> None:
    stop = threading.Event()

    def probe() -> None:
        while not stop.is_set():
            batcher.check(PATIENCE)

    with batcher_of(model) as batcher, ThreadPoolExecutor(4) as pool:
        probes = [pool.submit(probe) for _ in range(4)]
        assert [batcher(text) for text in "abcdef"] == list("ABCDEF")
        stop.set()
        for each in probes:
            each.result(PATIENCE)


# Close


def test_close_finishes_what_was_taken(model: StandIn) -> None:
    model.tokenize.clear()
    with held(model) as batcher, ThreadPoolExecutor(12) as pool:
        futures = [batcher.submit(f"text {number}") for number in range(30)]
        futures.append(pool.submit(asyncio.run, batcher.answer("slow")))
        while batcher.waiting < 31:
            time.sleep(0.001)
        closing = [pool.submit(batcher.close) for _ in range(8)]
        while not batcher._pending.closing:
            time.sleep(0.001)
        with pytest.raises(ClosedError, match="takes no more texts"):
            batcher.submit("late")
        with pytest.raises(ClosedError):
            asyncio.run(batcher.answer("late"))
        model.tokenize.set()
        assert not any(each.done() for each in closing)
        model.go.set()
        for each in closing:
            each.result(PATIENCE)
        assert [future.result(0 if number < 30 else PATIENCE) for number, future in enumerate(futures)] == [
            *(f"TEXT {number}" for number in range(30)),
            "SLOW",
        ]


def test_close_waits_for_what_is_being_tokenized(model: StandIn) -> None:
    model.tokenize.clear()
    batcher = batcher_of(model)
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(batcher, "slow")
        while not batcher.waiting:
            time.sleep(0.001)
        closing = pool.submit(batcher.close)
        batcher._worker._threads[0].join(0.1)
        assert not closing.done()
        model.tokenize.set()
        assert slow.result(PATIENCE) == "SLOW"
        closing.result(PATIENCE)


def test_close_without_draining_finishes_the_batch_alone(model: StandIn) -> None:
    model.go.clear()
    batcher = batcher_of(model)
    first = batcher.submit("first")
    assert model.started.wait(PATIENCE)
    waiting = [batcher.submit("waits") for _ in range(5)]
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(batcher.close, drain=False)
        for future in waiting:
            with pytest.raises(ClosedError, match="this text waited"):
                future.result(PATIENCE)
        assert not first.done()
        model.go.set()
        closing.result(PATIENCE)
    assert first.result(0) == "FIRST"
    assert model.passes == [["first"]]


def test_closing_a_batcher_whose_device_hangs(model: StandIn) -> None:
    record = Record()
    model.go.clear()
    batcher = batcher_of(model, observer=record)
    first = batcher.submit("first")
    assert model.started.wait(PATIENCE)
    futures = [first, *(batcher.submit("waits") for _ in range(5))]
    batcher.close(timeout=0.05)
    for future in futures:
        with pytest.raises(ClosedError, match=r"had not finished after 0\.05 s \(a forward pass runs for"):
            future.result(0)
    assert record.outcomes == ["closed"] * 6
    model.go.set()  # it wakes up after all
    batcher.close(timeout=PATIENCE)
    assert model.passes == [["first"]]
    assert not any(thread.is_alive() for thread in batcher._worker._threads if not thread.join(PATIENCE))


def test_callbacks_may_submit_and_close_but_not_wait(model: StandIn) -> None:
    batcher = batcher_of(model)
    later: Future[Any] = Future()
    errors: list[BaseException] = []

    def callback(_: Future[Any]) -> None:
        for wrong in (lambda: batcher("a"), lambda: batcher.check(1)):
            with pytest.raises(InputError, match="would wait for itself") as caught:
                wrong()
            errors.append(caught.value)
        batcher.submit("next").add_done_callback(lambda own: later.set_result(own.result()))
        batcher.close()
        raise ValueError("a callback's own fault")

    model.go.clear()
    batcher.submit("first").add_done_callback(callback)
    model.go.set()
    assert later.result(PATIENCE) == "NEXT"
    assert len(errors) == 2
    batcher.close(timeout=PATIENCE)


@pytest.mark.parametrize("fault", [ValueError, SystemExit])
def test_a_callback_that_fails_breaks_nothing(fault: type[BaseException], model: StandIn) -> None:
    def fails(_: Future[Any]) -> None:
        raise fault("mine")

    with held(model) as batcher:
        future = batcher.submit("a")
        future.add_done_callback(fails)
        model.go.set()
        assert future.result(PATIENCE) == "A"
        assert batcher("b") == "B"


def test_a_batcher_that_nobody_refers_to_ends() -> None:
    model = StandIn()
    model.go.clear()
    batcher = batcher_of(model)
    threads = batcher._worker._threads
    futures = [batcher.submit(text) for text in "ab"]
    assert model.started.wait(PATIENCE)
    del batcher
    gc.collect()
    model.go.set()
    assert [future.result(PATIENCE) for future in futures] == ["A", "B"]
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    seen = weakref.ref(model)
    del model, threads, thread
    gc.collect()
    assert seen() is None


def test_answers_and_ended_requests_hold_no_texts(model: StandIn) -> None:
    with batcher_of(model) as batcher:
        future = batcher.submit("a")
        future.result(PATIENCE)
        assert future.prepared is None  # type: ignore[attr-defined]
        assert not batcher._pending._live
        assert not batcher._pending._running


def test_whatever_happens_each_request_ends_once_and_nothing_is_left(model: StandIn) -> None:
    """Threads that submit, cancel, let deadlines pass and send poison, all at once, and a close in between."""
    record = Record()
    batcher = batcher_of(model, max_waiting=30, max_waiting_tokens=60, max_delay=0.0005, observer=record)
    submitted: list[Future[Any]] = []
    refused: list[Exception] = []

    def caller(seed: int) -> None:
        random = Random(seed)  # noqa: S311
        for number in range(150):
            text = random.choice(["a", "b c", "d e f g h i j k l m", "poison", "bad"]) + f" {seed}-{number}"
            try:
                future = batcher.submit(text, timeout=random.choice([None, 1e-6, 1e-3, 1000]))
            except (BusyError, ClosedError, InputError) as error:
                refused.append(error)
                continue
            submitted.append(future)
            if random.random() < 0.3:
                future.cancel()
            elif random.random() < 0.5:
                wait([future], PATIENCE)

    with ThreadPoolExecutor(9) as pool:
        callers = [pool.submit(caller, seed) for seed in range(8)]
        while len(record.outcomes) < 700:
            time.sleep(0.001)
        batcher.close(drain=False, timeout=PATIENCE)
        for each in callers:
            each.result(PATIENCE)
    assert not wait(submitted, PATIENCE).not_done
    ends = Counter(outcome_of(future) for future in submitted) + Counter(map(kind_of, refused))
    assert ends == Counter(record.outcomes)
    assert set(ends) == {"ok", "busy", "timeout", "cancelled", "error", "closed"}
    pending = batcher._pending
    assert [*pending._live, *pending._running, *pending._queue, *pending._tokenizing] == []
    assert (pending.tokens, pending._characters, record.depths[-1]) == (0, 0, (0, 0))


def outcome_of(future: Future[Any]) -> str:
    if future.cancelled():
        return "cancelled"
    error = future.exception(0)
    if error is None:
        own = future.result(0)
        assert own == own.upper()
        return "ok"
    return kind_of(error)


def kind_of(error: BaseException) -> str:
    return {BusyError: "busy", DeadlineError: "timeout", ClosedError: "closed"}.get(type(error), "error")


# The process


def run_script(script: str) -> str:
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=PATIENCE * 2, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_a_process_that_ends_finishes_what_was_taken() -> None:
    script = """
import threading
from mbexport.runtime import Batcher
from tests.batching import StandIn
model = StandIn()
model.go.clear()
batcher = Batcher(model)
for text in "abc":
    batcher.submit(text).add_done_callback(lambda future: print(future.result()))
threading.Timer(0.2, model.go.set).start()
"""
    assert sorted(run_script(script).split()) == ["A", "B", "C"]


def test_a_process_ends_although_the_device_hangs() -> None:
    script = """
from mbexport.runtime import Batcher, batch_worker
from tests.batching import StandIn
batch_worker.EXIT_SECONDS = 0.2
model = StandIn()
model.go.clear()
batcher = Batcher(model)
batcher.submit("a").add_done_callback(lambda future: print(future.exception()))
"""
    assert "had not finished after 0.2 s" in run_script(script)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_is_told() -> None:
    script = """
import asyncio, gc, os, threading
from mbexport.errors import ClosedError
from mbexport.runtime import Batcher
from tests.batching import StandIn
batcher = Batcher(StandIn())
lock = batcher._pending.lock
lock.acquire()  # as by any thread at that moment
child = os.fork()
if child == 0:
    def calls():
        global batcher
        for call in (batcher, batcher.submit, lambda text: asyncio.run(batcher.answer(text)), batcher.check):
            try:
                call("text")
            except ClosedError as error:
                print("process" in str(error), flush=True)
        batcher.close()
        print(batcher.waiting, batcher.fault, flush=True)
        del batcher, call
        gc.collect()
    thread = threading.Thread(target=calls)
    thread.start()
    thread.join()
    os._exit(0)  # ONNX Runtime, only imported, may hang in a forked process that ends otherwise
lock.release()
assert os.waitpid(child, 0)[1] == 0
print(batcher("parent"))
"""
    assert run_script(script).split() == ["True"] * 4 + ["0", "None", "PARENT"]
