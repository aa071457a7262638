"""`python -m worker.health`: exit status 0 when a worker of this host is there and takes runs."""

import socket
import sys

from backend.settings import load_settings
from backend.store.engine import open_engine
from backend.store.workers import Workers


def main() -> int:
    """Ask the database, which is what the API believes too."""
    engine = open_engine(load_settings().database_url)
    host = socket.gethostname()
    try:
        here = [w for w in Workers(engine).recent() if w.alive and w.host == host]
    finally:
        engine.dispose()
    if any(not w.trouble for w in here):
        return 0
    for worker in here:
        sys.stderr.write(f"{worker.id} takes no run: {worker.trouble}\n")
    if not here:
        sys.stderr.write(f"no worker of {host} has reported in lately\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
