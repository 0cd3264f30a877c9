"""A contender's own process: JSON requests on standard input, one JSON answer a line.

    {"do": "load", "contender": {...}, "tokenizer": FILE or null}
                                                       {"seconds", "versions"}
    {"do": "products", "shapes": [...], "threads": N}  {"multiply_adds"}
    {"do": "run", "workload": FILE, "again_below": S, "outputs": FILE or null}
                                                       {"seconds", "peak_bytes", "output"}
    {"do": "multiply"}                                 {"seconds"}

A request that fails is answered by {"error": "one line"}. Only the standard library is imported
before the first request, so that ``seconds`` of "load" holds the imports of the runtime.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from mbexport.errors import MbexportError
from mbexport.processes import peak_bytes

if TYPE_CHECKING:
    from mbexport.bench.engines import Engine
    from mbexport.bench.products import MatrixProducts
    from mbexport.bench.workloads import Workload


class Worker:
    """Answers requests; holds what was loaded."""

    _engine: Engine
    _products: MatrixProducts
    _workload: Workload
    _prepared: Any
    _file: str | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request."""
        match request["do"]:
            case "load":
                return self._load(request["contender"], request["tokenizer"])
            case "run":
                return self._run(request["workload"], request["again_below"], request["outputs"])
            case "products":
                return self._load_products(request["shapes"], request["threads"])
            case _:
                return self._multiply()

    def _load(self, contender: dict[str, Any], tokenizer: str | None) -> dict[str, Any]:
        """Load it; and a tokenizer, which mbexport's runtime brings by itself."""
        started = time.perf_counter()
        from mbexport.bench.contenders import OWN, Contender

        if tokenizer is not None and contender["kind"] not in OWN:
            from tokenizers import Tokenizer

            Tokenizer.from_file(tokenizer)
        from mbexport.bench.engines import ENGINES

        if contender["kernels"] is not None:
            os.environ["MBEXPORT_KERNELS"] = contender["kernels"]
        self._engine = ENGINES[contender["kind"]](Contender(**contender))
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "versions": {name: version(name) for name in self._engine.packages}}

    def _run(self, file: str, again_below: float, outputs: str | None) -> dict[str, Any]:
        """A workload once; once more, and that counts, where it takes less than ``again_below`` seconds."""
        engine = self._engine
        if self._file != file:
            from mbexport.bench.workloads import Workload

            self._file, self._workload = file, Workload.load(file)
            self._prepared = engine.prepare(self._workload)
        seconds, results = timed(engine, self._prepared)
        if seconds < again_below:
            seconds, results = timed(engine, self._prepared)
        peak = peak_bytes()  # before outputs are copied
        name = None
        if outputs is not None:
            import numpy as np

            name, rows = engine.outputs(self._workload, results)
            np.savez(outputs, *rows)  # as arr_0, arr_1, ...
        return {"seconds": seconds, "peak_bytes": peak, "output": name}

    def _load_products(self, shapes: list[tuple[int, int]], threads: int) -> dict[str, Any]:
        from mbexport.bench.products import MatrixProducts

        self._products = MatrixProducts(shapes, threads)
        self._products.run()
        return {"multiply_adds": self._products.multiply_adds}

    def _multiply(self) -> dict[str, Any]:
        self._products.run()
        started = time.perf_counter()
        self._products.run()
        return {"seconds": time.perf_counter() - started}


def timed(engine: Engine, prepared: Any) -> tuple[float, Any]:
    """Seconds of one run, and its results."""
    started = time.perf_counter()
    results = engine.run(prepared)
    return time.perf_counter() - started, results


def serve(answer_to: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer requests until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print does not mix with the answers
    for line in sys.stdin:
        try:
            answer = answer_to(json.loads(line))
        except Exception as error:
            kind = "" if isinstance(error, MbexportError) else f"{type(error).__name__}: "
            answer = {"error": " ".join(f"{kind}{error}".split())[:500]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(Worker().answer)
