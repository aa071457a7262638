"""Hosts of their own on one machine: network namespaces with one cable each, which can be cut.

Linux, root and iproute2 are needed. What a host reaches of this machine is one address, behind
which `Relay` puts servers that listen on a socket or on loopback alone.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


def missing() -> str:
    """Why no host can be made here; empty where one can."""
    if shutil.which("ip") is None:
        return "`ip` is not installed (Debian: apt-get install iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"calift-try-{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    return made.stderr.strip() if made.returncode else ""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@dataclass(frozen=True)
class Host:
    """A network namespace. `gateway` is this machine's address as the host reaches it."""

    name: str
    cable: str
    gateway: str

    def argv(self, argv: list[str]) -> list[str]:
        """A command that runs on the host."""
        return ["ip", "netns", "exec", self.name, *argv]

    def cut(self) -> None:
        """Take its cable out: what was under way gets no answer and no refusal."""
        _ip("link", "set", self.cable, "down")

    def mend(self) -> None:
        """Put the cable back."""
        _ip("link", "set", self.cable, "up")


@contextmanager
def host(number: int) -> Iterator[Host]:
    """A host, of which there may be 200, in the network that is kept for benchmarks (RFC 2544)."""
    tag = secrets.token_hex(3)
    made = Host(f"calift-{tag}", f"ch{tag}", f"198.18.{number}.1")
    _ip("netns", "add", made.name)
    try:
        _ip("link", "add", made.cable, "type", "veth", "peer", "name", "up0", "netns", made.name)
        _ip("addr", "add", f"{made.gateway}/30", "dev", made.cable)
        _ip("link", "set", made.cable, "up")
        _ip("-n", made.name, "addr", "add", f"198.18.{number}.2/30", "dev", "up0")
        _ip("-n", made.name, "link", "set", "up0", "up")
        _ip("-n", made.name, "link", "set", "lo", "up")
        yield made
    finally:
        subprocess.run(["ip", "link", "del", made.cable], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", made.name], check=False, capture_output=True)


class Relay:
    """Passes TCP connections on to a server that listens elsewhere.

    Args:
        address: to listen on, of this machine.
        to: the server: the path of its unix socket, or its host and port.
    """

    def __init__(self, address: str, to: str | tuple[str, int]) -> None:
        self._to = to
        self._listener = socket.create_server((address, 0))
        self._open: list[socket.socket] = []
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no further connection and end those that are there."""
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far: socket.socket
                if isinstance(self._to, str):
                    far = socket.socket(socket.AF_UNIX)
                    far.connect(self._to)
                else:
                    far = socket.create_connection(self._to)
                self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65_536):
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
