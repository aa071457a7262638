"""`python -m worker.health`: exit status 0 when a worker of this host has reported in lately."""

from __future__ import annotations

import socket
import sys

from backend.settings import load_settings
from backend.store import Store, open_engine


def main() -> int:
    """Ask the database, which is what the API believes too."""
    store = Store(open_engine(load_settings().database_url))
    try:
        host = socket.gethostname()
        alive = any(w.alive and w.host == host for w in store.workers())
    finally:
        store.close()
    if not alive:
        sys.stderr.write(f"no worker of {host} has reported in lately\n")
    return 0 if alive else 1


if __name__ == "__main__":
    sys.exit(main())
