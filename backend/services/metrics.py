"""`/metrics` for Prometheus: what the database holds, and how fast requests are answered here."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from backend.services.readiness import CHECKS
from backend.storage.artifacts import ArtifactStore
from backend.store.gauges import Gauges, Numbers
from backend.store.workers import Workers
from calift_core.errors import CaliftError
from calift_core.schema.wire.runs import RunPhase
from calift_core.schema.wire.service import WorkerInfo

log = logging.getLogger(__name__)

_PHASES: tuple[RunPhase, ...] = (
    "QUEUED",
    "STARTING",
    "RUNNING",
    "CANCELLING",
    "SUCCEEDED",
    "FAILED",
    "CANCELLED",
)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """What a scrape is answered with.

    Args:
        lacking: check → what is wrong, as for `/readyz`.
    """

    def __init__(
        self,
        gauges: Gauges,
        workers: Workers,
        artifacts: ArtifactStore,
        *,
        lacking: Callable[[], dict[str, str]],
        streams: Callable[[], int],
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Service(gauges, workers, artifacts, lacking, streams))
        self._latency = Histogram(
            "calift_request_seconds",
            "Time from a request to the first byte of its answer.",
            ("method", "operation", "status"),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def observe(self, *, method: str, operation: str, status: int, seconds: float) -> None:
        """A request was answered.

        Args:
            operation: its name in the API's description; empty for none of ours.
            seconds: until its first byte.
        """
        self._latency.labels(method, operation, f"{status // 100}xx").observe(seconds)

    def text(self) -> bytes:
        """The answer to a scrape, in Prometheus's text format."""
        return generate_latest(self._registry)


class _Service(Collector):
    def __init__(
        self,
        gauges: Gauges,
        workers: Workers,
        artifacts: ArtifactStore,
        lacking: Callable[[], dict[str, str]],
        streams: Callable[[], int],
    ) -> None:
        self._gauges, self._workers, self._artifacts = gauges, workers, artifacts
        self._lacking, self._streams = lacking, streams

    def collect(self) -> Iterator[Metric]:
        """What is known now; without the database, the rest of it."""
        lacking = self._lacking()
        yield _labelled(
            "calift_ready",
            "Whether a part of the service answers.",
            "check",
            {check: float(check not in lacking) for check in CHECKS},
        )
        yield GaugeMetricFamily("calift_event_streams", "Open event streams.", self._streams())
        try:
            yield GaugeMetricFamily(
                "calift_free_bytes",
                "Free space on the disk of the artifact folder.",
                self._artifacts.free_bytes(),
            )
        except CaliftError as error:
            log.debug("no free space is known: %s", error)
        try:
            numbers, workers = self._gauges.read(), self._workers.recent()
        except SQLAlchemyError as error:
            log.debug("nothing is known of the database: %s", error)
            return
        yield from _of_runs(numbers)
        yield from _of_workers([worker for worker in workers if worker.alive])


def _of_runs(n: Numbers) -> Iterable[Metric]:
    phases: dict[str, float] = {phase: n.runs.get(phase, 0) for phase in _PHASES}
    yield _labelled("calift_runs", "Runs by phase.", "phase", phases)
    yield _labelled("calift_queue_depth", "Runs that wait.", "queue", n.queued)
    yield _labelled(
        "calift_queue_oldest_seconds",
        "How long the run that waits longest has waited.",
        "queue",
        n.oldest_queued_s,
    )
    for name, words, value in (
        ("calift_owners_waiting", "Owners who have a run that waits.", n.owners_waiting),
        ("calift_leases", "Leases that workers hold.", n.leases),
        ("calift_leases_expired", "Leases that are over and not swept yet.", n.leases_expired),
        ("calift_outbox_unsent", "Messages that wait for the broker.", n.unsent),
        ("calift_outbox_lag_seconds", "How long the oldest has waited.", n.oldest_unsent_s),
        ("calift_artifact_files", "Names of stored files.", n.files),
        ("calift_artifact_bytes", "Stored bytes, each content once.", n.file_bytes),
    ):
        yield GaugeMetricFamily(name, words, value)
    if n.shortest_lease_s is not None:
        yield GaugeMetricFamily(
            "calift_lease_shortest_seconds", "Until the next lease is over.", n.shortest_lease_s
        )


def _of_workers(workers: list[WorkerInfo]) -> Iterable[Metric]:
    states = dict.fromkeys(("idle", "busy", "out", "drained"), 0)
    for worker in workers:
        states[_state(worker)] += 1
    yield _labelled("calift_workers", "Workers that report in.", "state", states)
    names = ("worker", "gpu")
    used = GaugeMetricFamily("calift_gpu_memory_used_bytes", "Of a worker's GPU.", labels=names)
    total = GaugeMetricFamily("calift_gpu_memory_bytes", "Of a worker's GPU.", labels=names)
    busy = GaugeMetricFamily("calift_gpu_utilisation", "A fraction.", labels=names)
    for worker in workers:
        for index, gpu in enumerate(worker.gpus):
            where = (worker.id, f"{index}: {gpu.name}")
            if gpu.memory_used_mib is not None:
                used.add_metric(where, gpu.memory_used_mib * 2**20)
            if gpu.memory_total_mib is not None:
                total.add_metric(where, gpu.memory_total_mib * 2**20)
            if gpu.utilisation is not None:
                busy.add_metric(where, gpu.utilisation)
    yield from (used, total, busy)


def _state(worker: WorkerInfo) -> str:
    if worker.run_id is not None:
        return "busy"
    if worker.drained_by is not None:
        return "drained"
    return "out" if worker.trouble else "idle"


def _labelled(name: str, words: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family
