"""What /metrics shows beside the batcher's own figures."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import Scope

from mbexport.runtime import Model

PATHS = ("/predict", "/embed", "/health", "/health/live", "/health/ready", "/metrics", "/info")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class HttpMetrics:
    """Requests by path and status, their time, how many are in flight, and texts that were cut.

    Attributes:
        in_flight: POST requests that were let in and are not answered.
    """

    def __init__(self, registry: CollectorRegistry, model: Model) -> None:
        self.in_flight = 0
        self._model = model
        self._requests = Counter(
            "mbexport_http_requests", "Answers by path and status; 499: the client had gone", ["path", "status"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "mbexport_http_seconds", "From a request's headers to the end of its answer", ["path"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        ProcessCollector(registry=registry)
        registry.register(self)  # anything with collect()

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """Count an answer; paths that do not exist count as one."""
        path = scope["path"] if scope["path"] in PATHS else "other"
        self._requests.labels(path, str(status)).inc()
        if status != 429:  # refusals would hide how long the others take
            self._seconds.labels(path).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """What is read when it is asked for."""
        yield GaugeMetricFamily("mbexport_http_in_flight", "Requests let in and not answered", self.in_flight)
        cut = CounterMetricFamily("mbexport_truncated_texts", "Texts longer than the model takes, which were cut")
        cut.add_metric([], self._model.truncated)
        yield cut
