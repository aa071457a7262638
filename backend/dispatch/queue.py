"""Celery messages that say "look at this run", and sending them.

A message holds a run's id and nothing else. It wakes a worker, which takes the first run in line.
Losing one costs time, not a run; one too many finds nothing to do.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery

from backend.settings import Settings
from backend.store.outbox import OutboxStore

_log = logging.getLogger(__name__)

#: The one task. A worker registers it under this name; it takes a run's id.
TASK_NAME = "calift.run"

#: What a worker may listen to, beside `gpu-multi-N`; see `backend.store.queues`.
QUEUES = ("cpu", "gpu", "mps")


def make_celery(settings: Settings) -> Celery:
    """The Celery application, for the API that publishes and for the worker that consumes."""
    app = Celery("calift", broker=settings.broker_url, set_as_current=False)
    app.conf.update(
        # Acknowledge at once. With late acks a run longer than the broker's visibility timeout is
        # delivered again while it works; our lease does what late acks promise.
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        # One run at a time and none held back: a run that waits in a busy worker's memory could
        # be started by an idle one.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        # The database holds results.
        task_ignore_result=True,
        result_backend=None,
        # Nothing that could be unpickled.
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        # Cancel and drain go through the row. Remote control would let whoever reaches the broker
        # stop workers, and its queues pile up behind dead ones.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        # A lost broker must not stop a run that works: it talks to the database.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            # A broker that hangs is a broker that is gone; without these a socket waits for ever.
            "socket_timeout": 10,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            # Ten levels, the lowest number first.
            "queue_order_strategy": "priority",
            "priority_steps": list(range(10)),
            "sep": ":",
        },
        # Runs end when they are done; the lease and the progress stamp find those that hang.
        task_time_limit=None,
        task_soft_time_limit=None,
        task_default_queue="cpu",
        worker_hijack_root_logger=False,
    )
    return app


def broker_priority(priority: int) -> int:
    """A run's priority (-10 to 10, highest first) as the broker's (0 to 9, lowest first)."""
    return min(9, max(0, round((10 - priority) * 9 / 20)))


class _BrokerConnection:
    """A fresh connection for a batch of messages: a pooled one may have died with the broker."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._connection: Any = None
        self._producer: Any = None

    def __enter__(self) -> _BrokerConnection:
        self._connection = self._app.connection_for_write()
        try:
            # One try; kombu would otherwise wait for the broker inside the publish.
            self._connection.ensure_connection(max_retries=1, interval_start=0, interval_max=0)
            self._producer = self._app.amqp.Producer(self._connection, auto_declare=False)
        except BaseException:
            self._connection.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.release()

    def send(self, run_id: str, queue: str, priority: int) -> None:
        # No retry: the relay comes again, and knows by then whether the run still waits.
        self._app.send_task(
            TASK_NAME,
            args=[run_id],
            queue=queue,
            priority=broker_priority(priority),
            producer=self._producer,
            retry=False,
            ignore_result=True,
        )


def publish(app: Celery, run_id: str, *, queue: str = "cpu", priority: int = 0) -> None:
    """Enqueue one run, once.

    Raises:
        kombu.exceptions.OperationalError: the broker does not answer.
    """
    with _BrokerConnection(app) as broker:
        broker.send(run_id, queue, priority)


def relay_once(outbox: OutboxStore, app: Celery, *, limit: int = 100) -> int:
    """Send the messages that no other relay holds, and mark them as sent; how many.

    After a crash between the two they are sent again, which is harmless.

    Raises:
        kombu.exceptions.OperationalError: the broker does not answer; the rest stays unsent.
    """
    rows = outbox.take(limit)
    if not rows:
        return 0
    sent: list[int] = []
    try:
        with _BrokerConnection(app) as broker:
            for row in rows:
                broker.send(row.run_id, row.queue, row.priority)
                sent.append(row.id)
    finally:
        if sent:
            outbox.mark_sent(*sent)
        if len(sent) < len(rows):
            outbox.give_back([row.id for row in rows[len(sent) :]])
    return len(rows)


def broker_answers(app: Celery) -> bool:
    """Whether the broker can be reached right now."""
    try:
        with _BrokerConnection(app):
            return True
    except Exception as error:  # whatever the transport raises, the answer is no
        _log.debug("the broker does not answer: %s", error)
        return False
