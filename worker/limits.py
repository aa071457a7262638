"""The times of an attempt."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Times of one attempt, all in seconds.

    Attributes:
        ttl_s: how long a claim lives without a heartbeat.
        cancel_poll_s: how often a cancel is looked for; this only reads.
        group_s: records are stored in groups, at most this long after they were read.
        grace_s: what a runner gets between SIGTERM and SIGKILL.
        hang_timeout_s: a runner that says nothing for so long is killed.
        tick_s: how often the runner and its files are looked at.
        log_limit_bytes: this much of an attempt's log goes to the database; the file keeps all.
        state_s: how long the end of an attempt that another goes on from waits for its last
            checkpoint to be stored.
    """

    ttl_s: float = 60.0
    heartbeat_s: float = 15.0
    cancel_poll_s: float = 1.0
    group_s: float = 1.0
    grace_s: float = 30.0
    hang_timeout_s: float = 1800.0
    tick_s: float = 0.1
    log_limit_bytes: int = 8 << 20
    state_s: float = 10.0
