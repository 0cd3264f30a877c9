"""A load generator that costs little, for a process of its own: it shares the cores with the service.

    python -m benchmarks.service.load PORT REQUESTS.json [--seconds 10] [--rate 500 | --clients 32]

REQUESTS.json is a list of {"path", "body", "expected"}. ``--clients`` is a closed loop: each sends its
next request when it has its answer. ``--rate`` is an open loop: requests come at random times
(Poisson), whether earlier ones are answered or not, and their time counts from when they were due.
Both take requests at random for ``--seconds``; without it, each is sent once, in a closed loop.
Prints what came of them, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOLERANCE = 1e-5  # of a score: a text's neighbours in a batch change its last digits
LONGEST = 60.0  # seconds to wait for an answer, then it is lost
FRESH = 2.0  # seconds that an idle connection is used again for; uvicorn closes it after 5


@dataclass
class Job:
    """One request, and what came of it: status 0 is no answer."""

    number: int  # in the list of requests
    due: float
    end: float = 0.0
    status: int = 0
    answer: bytes = b""


class Connection(asyncio.Protocol):
    """A connection that carries one request at a time."""

    def __init__(self, done: Callable[[Connection, Job], None]) -> None:
        self.done, self.open, self.idle_since = done, False, 0.0
        self.job: Job | None = None
        self.received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.open = transport, True

    def start(self, job: Job, request: bytes) -> None:
        """Send a request."""
        self.job = job
        self.received.clear()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """An answer, or a part of it."""
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if self.job is None or end < 0:
            return
        head = bytes(self.received[:end]).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        if len(self.received) < end + 4 + length:
            return
        self.job.status, self.job.answer = int(head[9:12]), bytes(self.received[end + 4 :])
        if b"connection: close" in head:
            self.open = False
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """An answer that has not come will not come."""
        self.open = False
        if self.job is not None:
            self._end()

    def _end(self) -> None:
        job, self.job = self.job, None
        assert job is not None
        job.end = self.idle_since = time.perf_counter()
        self.done(self, job)


class Client:
    """As many connections as are needed.

    Args:
        port: on this machine.
        requests: their bytes.
        seed: of their order.
    """

    def __init__(self, port: int, requests: Sequence[bytes], seed: int = 0) -> None:
        self.port, self.requests, self.random = port, requests, random.Random(seed)  # noqa: S311
        self.jobs: list[Job] = []
        self.free: list[Connection] = []
        self.outstanding = 0
        self.on_done: Callable[[], None] = lambda: None
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, due: float, number: int | None = None) -> None:
        """A request, or a random one, on a free connection or a new one."""
        job = Job(self.random.randrange(len(self.requests)) if number is None else number, due)
        self.jobs.append(job)
        self.outstanding += 1
        while self.free:
            connection = self.free.pop()
            if connection.open and time.perf_counter() - connection.idle_since < FRESH:
                connection.start(job, self.requests[job.number])
                return
            if connection.open:
                connection.transport.close()
        task = asyncio.ensure_future(self._connect(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, job: Job) -> None:
        try:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(lambda: Connection(self._done), "127.0.0.1", self.port)
        except OSError:
            job.end = time.perf_counter()
            self.outstanding -= 1
            self.on_done()
            return
        connection.start(job, self.requests[job.number])

    def _done(self, connection: Connection, _: Job) -> None:
        self.outstanding -= 1
        if connection.open:
            self.free.append(connection)
        self.on_done()

    async def open_loop(self, rate: float, seconds: float) -> None:
        """Requests at random times, ``rate`` a second."""
        due = time.perf_counter()
        end = due + seconds
        while due < end:
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            self.send(due)
            due += self.random.expovariate(rate)
        await self._settle()

    async def closed_loop(self, clients: int, seconds: float) -> None:
        """Each of ``clients`` sends its next request when the one before is answered."""
        end = time.perf_counter() + seconds
        self.on_done = lambda: self.send(time.perf_counter()) if time.perf_counter() < end else None
        for _ in range(clients):
            self.send(time.perf_counter())
        await asyncio.sleep(seconds)
        await self._settle()

    async def once(self, clients: int) -> None:
        """Each request once, by as many at a time."""
        left = iter(range(clients, len(self.requests)))
        self.on_done = lambda: self.send(time.perf_counter(), number) if (number := next(left, None)) else None
        for first in range(min(clients, len(self.requests))):
            self.send(time.perf_counter(), first)
        while len(self.jobs) < len(self.requests):
            await asyncio.sleep(0.05)
        await self._settle()

    async def _settle(self) -> None:
        end = time.perf_counter() + LONGEST
        while self.outstanding and time.perf_counter() < end:
            await asyncio.sleep(0.05)


def http(request: dict[str, Any]) -> bytes:
    """A request's bytes."""
    body = json.dumps(request["body"]).encode()
    head = f"POST {request['path']} HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def summary(jobs: Sequence[Job], requests: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What came of all requests; times in milliseconds."""
    accepted = [job for job in jobs if job.status == 200]
    start = min(job.due for job in jobs)
    in_time = [job for job in accepted if job.end - start <= seconds]
    return {
        "seconds": round(seconds, 1),
        "sent": len(jobs),
        "statuses": {str(status): count for status, count in sorted(Counter(job.status for job in jobs).items())},
        "lost": sum(job.status == 0 for job in jobs),
        "wrong": sum(not _right(job, requests[job.number]["expected"]) for job in accepted),
        "accepted_per_second": round(len(in_time) / seconds, 1),
        "texts_per_second": round(sum(len(requests[job.number]["expected"]) for job in in_time) / seconds, 1),
        "accepted_ms": _times(accepted),
        "refused_ms": _times([job for job in jobs if job.status == 429]),
    }


def _right(job: Job, expected: list[dict[str, Any]]) -> bool:
    found = json.loads(job.answer)["predictions"]
    return len(found) == len(expected) and all(
        one["label"] == other["label"] and abs(one["score"] - other["score"]) <= TOLERANCE
        for one, other in zip(found, expected, strict=True)
    )


def _times(jobs: Sequence[Job]) -> dict[str, float] | None:
    if len(jobs) < 2:
        return None
    times = [1000 * (job.end - job.due) for job in jobs]
    hundredths = statistics.quantiles(times, n=100, method="inclusive")
    return {
        "p50": round(hundredths[49], 1),
        "p90": round(hundredths[89], 1),
        "p99": round(hundredths[98], 1),
        "max": round(max(times), 1),
    }


def main() -> None:
    """Send, wait, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("requests", type=Path)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--clients", type=int, default=32)
    arguments = parser.parse_args()
    if arguments.rate and not arguments.seconds:
        parser.error("--rate needs --seconds")
    requests = json.loads(arguments.requests.read_text("utf-8"))
    client = Client(arguments.port, [http(request) for request in requests])
    if arguments.rate:
        asyncio.run(client.open_loop(arguments.rate, arguments.seconds))
    elif arguments.seconds:
        asyncio.run(client.closed_loop(arguments.clients, arguments.seconds))
    else:
        asyncio.run(client.once(arguments.clients))
    end = max(job.end for job in client.jobs) - client.jobs[0].due
    print(json.dumps(summary(client.jobs, requests, arguments.seconds or end)))


if __name__ == "__main__":
    main()
