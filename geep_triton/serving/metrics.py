"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from geep_triton.promises.audit import Audit
from geep_triton.serving.batcher import Ran

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS = (16, 64, 256, 1024, 4096, 16384, 65536, 262144)


class Metrics:
    """The counters of one server, in a registry of their own. Threads may share it.

    Args:
        num_layers: of the model.
        audit: is told of, too.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, num_layers: int, audit: Audit | None = None) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("geep_requests", "Requests by answer.", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "geep_request_seconds", "From a request's first byte to its answer.", ["route"], buckets=SECONDS, registry=registry
        )
        self._queue = Histogram(
            "geep_queue_seconds", "That requests waited for their batch.", buckets=SECONDS, registry=registry
        )
        self._run = Histogram("geep_batch_seconds", "That batches ran.", buckets=SECONDS, registry=registry)
        self._texts = Histogram("geep_batch_texts", "Texts of batches.", buckets=TEXTS, registry=registry)
        self._tokens = Histogram(
            "geep_batch_tokens", "Expected work of batches, in tokens that run all layers.", buckets=TOKENS, registry=registry
        )
        self._exits = Histogram(
            "geep_exit_layer",
            "Layers after which texts were answered.",
            buckets=range(1, num_layers + 1),
            registry=registry,
        )
        self._in_hand = Gauge("geep_requests_in_hand", "Requests that wait or run.", registry=registry)
        if audit is not None:
            registry.register(_AuditCollector(audit))

    def see_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered, or whose client went away (status 499)."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def see_batch(self, ran: Ran) -> None:
        """Count a batch that has run."""
        for seconds in ran.waited:
            self._queue.observe(seconds)
        self._run.observe(ran.seconds)
        self._texts.observe(ran.texts)
        self._tokens.observe(ran.work)

    def see_answer(self, exits: Sequence[int]) -> None:
        """Count the exit layers of a request's texts."""
        for layer in exits:
            self._exits.observe(layer)

    def watch_queue(self, in_hand: Callable[[], int]) -> None:
        """Tell, whenever it is asked, how many requests are in hand."""
        self._in_hand.set_function(in_hand)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)


class _AuditCollector(Collector):
    """What an audit has seen, at the moment of asking."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    def collect(self) -> Iterator[Metric]:
        report = self._audit.report()
        yield GaugeMetricFamily("geep_audit_texts", "Texts that also ran to the end.", report.samples)
        if report.agreement is not None:
            yield GaugeMetricFamily("geep_audit_agreement", "Share of them with the full model's answer.", report.agreement)
            yield GaugeMetricFamily("geep_audit_agreement_recent", "The same of about the last 500.", report.recent)
        if report.promised is not None:
            yield GaugeMetricFamily("geep_promised_agreement", "The agreement that was promised.", report.promised)
        if report.holds is not None:
            yield GaugeMetricFamily(
                "geep_promise_broken", "1: the audit has shown that the promise is broken.", not report.holds
            )
