"""The one task, and what surrounds it in a worker process.

A task is a view: an id comes in, and the database says whether there is something to do.

The pool is one thread. A run is a process of its own (see `worker.supervisor`), so a pool process
would only stand between it and us. The `solo` pool would run the task inside Celery's own loop: the
acknowledgement then goes out *after* the run, and when it fails, because the broker restarted
meanwhile, the worker never takes a message again (Celery 5.7). The runner's tie to its parent is a
tie to the pool's thread, which lives until the worker has drained.
"""

import logging
from typing import Any

from celery import Celery, signals
from kombu.entity import Exchange, Queue

from backend.dispatch.housekeeper import Housekeeper
from backend.dispatch.queue import TASK_NAME, publish
from backend.logs import set_up
from backend.settings import Settings
from worker.service import WorkerService

log = logging.getLogger(__name__)


class _Process:
    """What lives as long as the worker process does."""

    def __init__(self, app: Celery, settings: Settings, options: dict[str, Any]) -> None:
        self.app, self.settings, self.options = app, settings, options
        self.service: WorkerService | None = None
        self.housekeeper: Housekeeper | None = None
        #: The one that the last message came from.
        self.queue = "cpu"

    def initialise(self, **_: Any) -> None:
        try:
            self.service = self._make_service()
        except Exception as error:
            # Celery drops what a signal handler raises, and would go on without a service.
            log.exception("the worker cannot start")
            raise SystemExit(1) from error
        # What -Q does not say, the device does.
        self.app.conf.task_queues = [
            Queue(name, Exchange(name), routing_key=name)  # type: ignore[no-untyped-call]
            for name in self.service.queues
        ]

    def _make_service(self) -> WorkerService:
        service = WorkerService(self.settings, give_back=self.send_again, **self.options)
        service.wait_for_database()
        # Relay and reaper run in every worker and in the API; conditional updates keep them apart.
        self.housekeeper = Housekeeper(service.engine, self.app, service.artifacts, self.settings)
        return service

    def ready(self, **_: Any) -> None:
        if self.service is None or self.housekeeper is None:
            return
        self.service.queues = tuple(self.app.amqp.queues.consume_from)
        self.service.start()
        self.housekeeper.start()
        log.info(
            "worker %s serves %s on %s",
            self.service.id,
            ", ".join(self.service.queues),
            self.service.device.label,
        )

    def shutting_down(self, **_: Any) -> None:
        # In a signal handler: set a flag, touch no lock.
        if self.service is not None:
            self.service.draining = True

    def shutdown(self, **_: Any) -> None:
        if self.housekeeper is not None:
            self.housekeeper.stop()
        if self.service is not None:
            self.service.stop()

    def run(self, run_id: str, queue: str) -> None:
        assert self.service is not None
        self.queue = queue
        if self.service.draining:
            self.send_again(run_id)  # for the next worker
        else:
            self.service.answer(run_id)

    def send_again(self, run_id: str) -> None:
        publish(self.app, run_id, queue=self.queue)


def install(app: Celery, settings: Settings, **options: Any) -> None:
    """Make a Celery application a worker's: its pool, its task, its life.

    Args:
        app: from `backend.dispatch.queue.make_celery`.
        options: for `WorkerService`.
    """
    app.conf.update(worker_pool="threads", worker_concurrency=1)
    process = _Process(app, settings, options)

    def run(task: Any, run_id: str) -> None:
        process.run(run_id, queue=task.request.delivery_info["routing_key"])

    def log_as_set(**_: Any) -> None:
        # Connected, Celery sets up no handlers of its own.
        set_up(settings.log_format)

    if settings.log_format == "json":
        signals.setup_logging.connect(log_as_set, weak=False)
    app.task(name=TASK_NAME, ignore_result=True, bind=True)(run)
    # Strong references: nothing else holds the bound methods.
    signals.worker_init.connect(process.initialise, weak=False)
    signals.worker_ready.connect(process.ready, weak=False)
    signals.worker_shutting_down.connect(process.shutting_down, weak=False)
    signals.worker_shutdown.connect(process.shutdown, weak=False)
