"""The parent's side of a worker."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NoAnswerError
from dataclasses import asdict
from types import TracebackType
from typing import IO, Any, cast

from mbexport.bench.contenders import Contender
from mbexport.errors import ContenderError
from mbexport.processes import last_words, module_command

LONGEST_ANSWER = 1800  # seconds that one request may take


class WorkerProcess:
    """A process that runs one contender; it sits blocked on a pipe between requests.

    Args:
        module: what it runs, which answers as :func:`mbexport.bench.worker.serve` does.
        longest: seconds that one request may take.
    """

    def __init__(self, module: str = "mbexport.bench.worker", longest: float = LONGEST_ANSWER) -> None:
        self._longest = longest
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(  # noqa: S603 (its words are ours)
            module_command(module),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, encoding="utf-8",
        )  # fmt: skip
        self._requests = cast("IO[str]", self._process.stdin)
        self._answers = cast("IO[str]", self._process.stdout)
        self._reader = ThreadPoolExecutor(1)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            ContenderError: the request failed, or the process died; says why in one line.
        """
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
            line = self._reader.submit(self._answers.readline).result(self._longest)
        except BrokenPipeError:
            line = ""
        except NoAnswerError:
            self._process.kill()
            raise ContenderError(f"no answer within {self._longest:g} s") from None
        if not line:
            raise ContenderError(self._last_words())
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:  # it died while it wrote
            raise ContenderError(self._last_words()) from None
        if "error" in answer:
            raise ContenderError(answer["error"])
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        return last_words(code, self._errors.read().decode("utf-8", "replace"))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._reader.shutdown()
        with contextlib.suppress(BrokenPipeError):  # a request that nobody read
            self._requests.close()
        self._answers.close()
        self._errors.close()


class Pool:
    """Loaded workers by contender, started when first asked for."""

    def __init__(self) -> None:
        self._workers: dict[Contender, WorkerProcess] = {}
        self._products: tuple[WorkerProcess, int] | None = None
        self._versions: dict[str, dict[str, str]] = {}

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
        if self._products is not None:
            self._products[0].close()

    def worker(self, contender: Contender) -> WorkerProcess:
        """The contender's process, loaded.

        Raises:
            ContenderError: it cannot be loaded.
        """
        if contender not in self._workers:
            worker = WorkerProcess()
            self._workers[contender] = worker
            loaded = worker.ask(do="load", contender=asdict(contender), tokenizer=None)["versions"]
            self._versions[contender.name] = self._versions.get(contender.name, {}) | loaded
        return self._workers[contender]

    def versions_of(self, contender: Contender) -> dict[str, str]:
        """Versions of the packages that it ran with; empty where it was never loaded."""
        return self._versions.get(contender.name, {})

    def close(self, *contenders: Contender) -> None:
        """End these workers, or without arguments all contenders'."""
        for contender in contenders or tuple(self._workers):
            worker = self._workers.pop(contender, None)
            if worker is not None:
                worker.close()

    def product_rate(self, shapes: Sequence[tuple[int, int]], threads: int) -> float:
        """Multiply-adds a second of matrix products of these shapes, measured once, now.

        Raises:
            ContenderError: ONNX Runtime cannot compute them.
        """
        if self._products is None:
            worker = WorkerProcess()
            answer = worker.ask(do="products", shapes=list(shapes), threads=threads)
            self._products = worker, int(answer["multiply_adds"])
        worker, multiply_adds = self._products
        return float(multiply_adds / worker.ask(do="multiply")["seconds"])
