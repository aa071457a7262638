"""Whether ports are free, told before anything long is begun.

Also run by `make` with a bare Python, before anything is installed:
`python backend/stack/ports.py`. So this imports nothing but the standard library.
"""

import json
import os
import socket
import sys
import urllib.error
import urllib.request

HOST = "127.0.0.1"

#: What listens, by name: the variable of its port, and the port.
PORTS = {"api": ("CALIFT_PORT", 8000), "dashboard": ("CALIFT_DASHBOARD_PORT", 8501)}


def bind_once(port: int) -> int | None:
    """The port if it can be bound now (a free one for 0), else None."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return None
        return int(probe.getsockname()[1])


def _is_calift(port: int) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{HOST}:{port}/api/v1/health", timeout=3) as answer:
            body = json.load(answer)
    except (OSError, ValueError):
        return False
    return isinstance(body, dict) and {"status", "version"} <= body.keys()


def main() -> int:
    """Say which port is taken, unless a calift is what has them: that one may be used."""
    wanted = {
        name: os.environ.get(variable) or default for name, (variable, default) in PORTS.items()
    }
    for name, port in wanted.items():
        variable = PORTS[name][0]
        if not str(port).isdecimal() or int(port) > 65_535:
            sys.stderr.write(f"{variable} must be a port, got {port!r}.\n")
            return 1
        if bind_once(int(port)) is None:
            if _is_calift(int(wanted["api"])):
                return 0
            sys.stderr.write(
                f"Port {port} of {HOST}, for the {name}, is taken by another program. Free it, or "
                f"choose another with {variable}.\n"
            )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
