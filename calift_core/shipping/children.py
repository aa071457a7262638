"""Processes that answer questions, started again when they end. Torch-free."""

from __future__ import annotations

import json
import os
import select
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

from calift_core.errors import CaliftError, SpecError, UnreadableImageError
from calift_core.shipping.frames import HEAD, LENGTH, MOST_BYTES


class ChildEndedError(CaliftError):
    """The process ended, or took too long, before it answered."""

    code = "CHILD_ENDED"


class Child:
    """One process; one question at a time.

    Args:
        timeout_s: what an answer may take before the process is ended.
        environment: what it sees; None: ours.
    """

    def __init__(
        self,
        argv: Sequence[str],
        name: str,
        *,
        timeout_s: float,
        start_s: float = 300.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._argv, self._name = list(argv), name
        self._environment = None if environment is None else dict(environment)
        self._timeout_s, self._start_s = timeout_s, start_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False
        self.starts = 0
        self.hello: dict[str, object] = {}

    def start(self) -> None:
        """Start it unless it is there; returns when it has said what it is.

        Raises:
            SpecError: it cannot be started.
            UnreadableImageError: what it said of itself is an error; what it says.
        """
        with self._lock:
            self._ready()

    def ask(self, question: bytes, *, timeout_s: float | None = None) -> bytes:
        """Its answer.

        Args:
            timeout_s: what this answer may take; None: what every one may.

        Raises:
            UnreadableImageError: the answer is an error; what it says.
            ChildEndedError: it ended or took too long; it is started again by the next question.
        """
        with self._lock:
            process = self._ready()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(LENGTH.pack(len(question)) + question)
                process.stdin.flush()
                patience = self._timeout_s if timeout_s is None else timeout_s
                return _answer(process.stdout, time.monotonic() + patience)
            except (OSError, EOFError, TimeoutError) as error:
                self._end()
                raise ChildEndedError(f"{self._name} ended or took too long: {error}") from None

    @property
    def alive(self) -> bool:
        """Whether it is there now."""
        process = self._process
        return process is not None and process.poll() is None

    def stop(self) -> None:
        """End it for good, whatever it is doing."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()  # who waits for its answer waits no longer
        with self._lock:
            self._end()

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise ChildEndedError(f"{self._name} is being stopped")
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        process = subprocess.Popen(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=self._environment,
        )
        self._process = process
        self.starts += 1
        assert process.stdout is not None
        try:
            self.hello = json.loads(_answer(process.stdout, time.monotonic() + self._start_s))
        except (OSError, EOFError, TimeoutError):
            self._end()
            raise SpecError(f"{self._name} cannot be started, see its output") from None
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            end_process(process)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, wait for it, and close our ends of its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _answer(stream: IO[bytes], deadline: float) -> bytes:
    status, length = HEAD.unpack(_read(stream, HEAD.size, deadline))
    if length > MOST_BYTES:
        raise EOFError("its answer is no answer")
    body = _read(stream, length, deadline)
    if status == 0:
        return body
    told = json.loads(body)
    raise UnreadableImageError(told["message"], hint=told["hint"])


def _read(stream: IO[bytes], n: int, deadline: float) -> bytes:
    poll = select.poll()
    poll.register(stream, select.POLLIN | select.POLLHUP)
    parts, left = [], n
    while left:
        wait = deadline - time.monotonic()
        if wait <= 0 or not poll.poll(wait * 1000):
            raise TimeoutError("no answer in time")
        part = os.read(stream.fileno(), min(left, 1 << 20))
        if not part:
            raise EOFError("it is gone")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
