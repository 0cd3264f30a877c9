"""A batcher's metrics for Prometheus, by its own client (``pip install 'mbexport[serve]'``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mbexport.optional import require

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# A short text on a GPU takes about a millisecond, a batch of long ones on a CPU many seconds.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
OUTCOMES = ("ok", "busy", "timeout", "cancelled", "error", "closed")


class PrometheusObserver:
    """Metrics of a batcher, named after what they measure below one prefix.

    Gauges ``_queue_texts`` and ``_queue_tokens``: what waits. Histograms of forward passes
    ``_batch_texts``, ``_batch_tokens`` and ``_batch_seconds``, and ``_request_seconds{outcome}`` of
    requests from submission to their end, as ``ok``, ``busy``, ``timeout``, ``cancelled``, ``error`` or
    ``closed``. Each histogram's ``_count`` and ``_sum`` are the counters of passes, texts, tokens and
    requests; all are there, at zero, from the start.

    Args:
        registry: to register them with; None takes prometheus-client's own.
        prefix: of all names; two batchers of one registry need two.

    Raises:
        MissingExtraError: prometheus-client is not installed.
        ValueError: the registry has such names already.
    """

    def __init__(self, registry: CollectorRegistry | None = None, prefix: str = "mbexport") -> None:
        require("prometheus_client")
        from prometheus_client import REGISTRY, Gauge, Histogram

        into = REGISTRY if registry is None else registry
        self._texts = Gauge(f"{prefix}_queue_texts", "Texts that wait, those being tokenized counted.", registry=into)
        self._tokens = Gauge(f"{prefix}_queue_tokens", "Tokens that wait.", registry=into)
        self._batch_texts = Histogram(f"{prefix}_batch_texts", "Texts of a forward pass.", buckets=TEXTS, registry=into)
        self._batch_tokens = Histogram(
            f"{prefix}_batch_tokens", "Tokens of a forward pass, padding not counted.", buckets=TOKENS, registry=into
        )
        self._batch_seconds = Histogram(
            f"{prefix}_batch_seconds", "Time of a forward pass.", buckets=SECONDS, registry=into
        )
        seconds = Histogram(
            f"{prefix}_request_seconds",
            "Time from a text's submission to its end.",
            ["outcome"],
            buckets=SECONDS,
            registry=into,
        )
        self._requests = {outcome: seconds.labels(outcome) for outcome in OUTCOMES}

    def queue(self, texts: int, tokens: int) -> None:
        """Set the gauges."""
        self._texts.set(texts)
        self._tokens.set(tokens)

    def batch(self, texts: int, tokens: int, seconds: float) -> None:
        """Count a forward pass."""
        self._batch_texts.observe(texts)
        self._batch_tokens.observe(tokens)
        self._batch_seconds.observe(seconds)

    def request(self, outcome: str, seconds: float) -> None:
        """Count a request by its outcome."""
        self._requests[outcome].observe(seconds)
