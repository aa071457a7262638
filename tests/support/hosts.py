"""Hosts of their own on one machine: network namespaces with one cable each, which can be cut.

Linux, root and iproute2 are needed. The other end of a host's cable is in a namespace as well, its
gateway: a network that comes up or goes down in this machine's own namespace makes every Chromium
here drop its connections (`ERR_NETWORK_CHANGED`), also those of other tests. What a host reaches is
one address of its gateway, where `Relay` listens for servers of this machine.
"""

import ctypes
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


@contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """The calling thread in a network namespace: a socket stays in the one that it was made in."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as own, open(f"/run/netns/{namespace}") as other:
        if libc.setns(other.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"no way into the namespace {namespace}")
        try:
            yield
        finally:
            if libc.setns(own.fileno(), 0):
                os._exit(70)  # every later test would be in the wrong network


@dataclass(frozen=True)
class Host:
    """A network namespace, and the one at the other end of its cable.

    Attributes:
        name: the host's namespace.
        gateway: the namespace where its cable ends, as `cable`.
        address: the gateway's, as the host reaches it.
    """

    name: str
    gateway: str
    cable: str
    address: str

    def argv(self, argv: list[str]) -> list[str]:
        """A command that runs on the host."""
        return ["ip", "netns", "exec", self.name, *argv]

    def cut(self) -> None:
        """Take its cable out: what was under way gets no answer and no refusal."""
        _ip("-n", self.gateway, "link", "set", self.cable, "down")

    def mend(self) -> None:
        """Put the cable back."""
        _ip("-n", self.gateway, "link", "set", self.cable, "up")


@contextmanager
def host(number: int) -> Iterator[Host]:
    """A host, of which there may be 200, in the network that is kept for benchmarks (RFC 2544)."""
    tag = secrets.token_hex(3)
    made = Host(f"calift-{tag}", f"calift-{tag}-gw", "down0", f"198.18.{number}.1")
    try:
        for name in (made.name, made.gateway):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        cable = ("link", "add", made.cable, "type", "veth", "peer", "name", "up0")
        _ip("-n", made.gateway, *cable, "netns", made.name)
        _ip("-n", made.gateway, "addr", "add", f"{made.address}/30", "dev", made.cable)
        _ip("-n", made.gateway, "link", "set", made.cable, "up")
        _ip("-n", made.name, "addr", "add", f"198.18.{number}.2/30", "dev", "up0")
        _ip("-n", made.name, "link", "set", "up0", "up")
        yield made
    finally:
        for name in (made.gateway, made.name):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


class Relay:
    """Passes a host's TCP connections on to a server of this machine.

    Args:
        host: whose gateway listens.
        to: the server: the path of its unix socket, or its host and port.
    """

    def __init__(self, host: Host, to: str | tuple[str, int]) -> None:
        self._to = to
        with _inside(host.gateway):
            self._listener = socket.create_server((host.address, 0))
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
