"""A model without a graph, whose every step a test can hold, watch and break, for a batcher's scheduling."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mbexport.errors import BackendError, InputError
from mbexport.runtime import Batcher
from mbexport.runtime.answers import Prepared
from mbexport.runtime.text import Encoded

PATIENCE = 60  # seconds; nothing here needs them, what takes longer hangs


class StandIn:
    """Answers a text with itself in capitals; its words are its tokens.

    A text's own words say what happens to it: ``poison`` fails every pass that it is in, ``slow`` is
    held in the tokenizer. One that begins with ``bad`` is refused.

    Attributes:
        go: the forward passes wait for it.
        tokenize: texts with ``slow`` in them wait for it.
        started: a forward pass has begun.
        passes: the texts of each pass, in order.
        tokenized: texts, in order.
        failure: what a poisoned text raises.
        dead: nothing computes any more.
        checks: names of the threads that checked.
    """

    batch_tokens = 8

    def __init__(self) -> None:
        self.go, self.tokenize = threading.Event(), threading.Event()
        self.go.set()
        self.tokenize.set()
        self.started = threading.Event()
        self.passes: list[list[str]] = []
        self.tokenized: list[str] = []
        self.failure: Exception | None = None
        self.dead = False
        self.answers_lost = 0  # of each pass
        self.checks: list[str] = []

    def prepare(
        self, texts: Sequence[str], prompt_name: str | None = None, truncate_dim: int | None = None
    ) -> list[Prepared]:
        for text in texts:
            if text.startswith("bad"):
                raise InputError("text 0 is bad")
            if "slow" in text:
                assert self.tokenize.wait(PATIENCE)
            self.tokenized.append(text)
        prompt = f"{prompt_name} " if prompt_name else ""
        return [
            Prepared(prompt + text, (Encoded(np.ones(len(text.split()), np.int64), None),), truncate_dim)
            for text in texts
        ]

    def answers(self, prepared: Sequence[Prepared]) -> Iterator[tuple[int, Any]]:
        texts = [item.item for item in prepared]
        self.passes.append(texts)
        self.started.set()
        assert self.go.wait(PATIENCE)
        if self.dead:
            raise BackendError("the device is lost")
        for number in range(len(texts))[self.answers_lost :][::-1]:
            if "poison" in texts[number]:
                raise self.failure or BackendError(f"{texts[number]} cannot be computed")
            yield number, texts[number].upper()

    def check(self) -> None:
        self.checks.append(threading.current_thread().name)
        assert self.go.wait(PATIENCE)
        if self.dead:
            raise BackendError("the device is lost")


@contextmanager
def held(model: StandIn, **options: Any) -> Iterator[Batcher]:
    """A batcher in the middle of the forward pass of the text ``first``, which goes on at the end."""
    batcher = Batcher(model, **({"max_waiting_tokens": 128} | options))  # type: ignore[arg-type]
    model.go.clear()
    batcher.submit("first")
    assert model.started.wait(PATIENCE)
    try:
        yield batcher
    finally:
        model.go.set()
        batcher.close(timeout=PATIENCE)


class Record:
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.depths: list[tuple[int, int]] = []
        self.batches: list[tuple[int, int]] = []
        self.outcomes: list[str] = []
        self.seconds: list[float] = []

    def queue(self, texts: int, tokens: int) -> None:
        self.depths.append((texts, tokens))

    def batch(self, texts: int, tokens: int, seconds: float) -> None:
        self.batches.append((texts, tokens))
        self.seconds.append(seconds)

    def request(self, outcome: str, seconds: float) -> None:
        self.outcomes.append(outcome)
        self.seconds.append(seconds)
