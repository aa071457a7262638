"""What API and worker log: lines for people or JSON objects, with the ids that bind them.

A request has an id, which its answer carries, which the run that it submits keeps, and which that
run's worker and runner log again: one search finds all that came of it.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TextIO

import structlog
from structlog.typing import Processor

#: What a worker logs of its runners' lines: in JSON alone, because people read them with the run.
RUNNER_LOG = "calift.runner"

#: What stands before the message in lines for people.
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

# Until `set_up` says otherwise.
logging.getLogger(RUNNER_LOG).setLevel(logging.WARNING)


def set_up(
    kind: Literal["text", "json"], *, level: int = logging.INFO, stream: TextIO | None = None
) -> None:
    """Log to standard error, in place of whatever was set up before.

    Args:
        kind: `text`, or `json`: `timestamp`, `level`, `logger`, `event`, and the ids that
            `named` gives.
        stream: elsewhere.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(json_formatter() if kind == "json" else logging.Formatter(_TEXT))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    logging.getLogger(RUNNER_LOG).setLevel(logging.INFO if kind == "json" else logging.WARNING)


def json_formatter() -> logging.Formatter:
    """One JSON object a line, of records of the standard library's loggers."""
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=before,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )


@contextmanager
def named(**ids: object) -> Iterator[None]:
    """Have everything that is logged in the block carry ids; empty ones are left out."""
    with structlog.contextvars.bound_contextvars(**{k: v for k, v in ids.items() if v}):
        yield
