"""Processes that answer questions: one protocol for all of them. Torch-free.

A question is a length (4 bytes, the highest first) and so many bytes; an answer has one byte more
in front, 0 where it is one and 1 where it is an error as JSON (`code`, `message`, `hint`). Nothing
is unpickled on either side. `Child` asks, `answer_all` answers.
"""

import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO

from calift_core.errors import CaliftError, DataError, SpecError, UnreadableImageError

LENGTH = struct.Struct(">I")
HEAD = struct.Struct(">BI")
#: No question and no answer is larger.
MOST_BYTES = 1 << 30


class ChildEndedError(CaliftError):
    """The process ended, or took too long, before it answered."""

    code = "CHILD_ENDED"


class ChildTimeoutError(ChildEndedError):
    """The process took too long, and was ended."""

    code = "CHILD_TIMEOUT"


class Child:
    """One process in a group of its own; one question at a time.

    Args:
        timeout_s: what an answer may take before the process is ended.
        environment: what it sees; None: ours.
        refusal: what an error that it tells is raised as.
        quiet: what it writes beside its answers is nobody's.
    """

    def __init__(
        self,
        argv: Sequence[str],
        name: str,
        *,
        timeout_s: float,
        start_s: float = 300.0,
        environment: Mapping[str, str] | None = None,
        refusal: type[CaliftError] = UnreadableImageError,
        most_bytes: int = MOST_BYTES,
        quiet: bool = False,
    ) -> None:
        self._refusal, self._most_bytes, self._quiet = refusal, most_bytes, quiet
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
            CaliftError: what it said of itself is an error; what it says.
        """
        with self._lock:
            self._ready()

    def ask(self, question: bytes, *, timeout_s: float | None = None) -> bytes:
        """Its answer.

        Args:
            timeout_s: what this answer may take; None: what every one may.

        Raises:
            CaliftError: the answer is an error; what it says, as the `refusal`.
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
                return self._answer(process.stdout, patience)
            except (OSError, EOFError) as error:  # a TimeoutError is an OSError
                self._end()
                kind = ChildTimeoutError if isinstance(error, TimeoutError) else ChildEndedError
                raise kind(f"{self._name} ended or took too long: {error}") from None

    @property
    def alive(self) -> bool:
        """Whether it is there now."""
        process = self._process
        return process is not None and process.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def stop(self) -> None:
        """End it for good, whatever it is doing."""
        self._closed = True
        process = self._process
        if process is not None:
            _kill(process)  # who waits for its answer waits no longer
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
            stderr=subprocess.DEVNULL if self._quiet else None,
            bufsize=0,
            env=self._environment,
            start_new_session=True,
        )
        self._process = process
        self.starts += 1
        assert process.stdout is not None
        try:
            self.hello = json.loads(self._answer(process.stdout, self._start_s))
        except (OSError, EOFError) as error:
            self._end()
            if isinstance(error, TimeoutError):
                raise ChildTimeoutError(f"{self._name} took too long to start") from None
            raise SpecError(f"{self._name} cannot be started, see its output") from None
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _kill(process)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def _answer(self, stream: IO[bytes], patience_s: float) -> bytes:
        deadline = time.monotonic() + patience_s
        status, length = HEAD.unpack(_read(stream, HEAD.size, deadline))
        if length > self._most_bytes:
            raise EOFError("its answer is no answer")
        body = _read(stream, length, deadline)
        if status == 0:
            return body
        problem = json.loads(body)
        raise self._refusal(problem["message"], hint=problem["hint"])


def ask_once(child: Child, question: bytes) -> bytes:
    """The answer of a process that is begun for one question.

    Raises:
        CaliftError: as `Child.ask`.
        SpecError: it cannot be started.
    """
    try:
        return child.ask(question)
    finally:
        child.stop()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it has begun."""
    with suppress(ProcessLookupError, PermissionError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


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


# ---- The other side: a process that answers -----------------------------------------------------


def read_exactly(stream: IO[bytes], n: int) -> bytes | None:
    """The next n bytes, None where the stream ended before."""
    parts, left = [], n
    while left:
        part = stream.read(left)
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def answer_all(
    hello: bytes, answer: Callable[[bytes], bytes], answers: IO[bytes] | None = None
) -> None:
    """Say hello, then answer until there is nothing more to read.

    Args:
        hello: what the server is told first, as an answer.
        answer: of one question; a `CaliftError` is told, others end the process.
        answers: standard output if not given.
    """
    questions = sys.stdin.buffer
    if answers is None:
        answers, sys.stdout = sys.stdout.buffer, sys.stderr  # libraries print
    _write(answers, 0, hello)
    while (head := read_exactly(questions, LENGTH.size)) is not None:
        question = read_exactly(questions, LENGTH.unpack(head)[0])
        if question is None:
            return
        try:
            status, body = 0, answer(question)
        except CaliftError as error:
            status, body = 1, json.dumps(error_payload(error)).encode()
        except MemoryError:
            status, body = (
                1,
                json.dumps(error_payload(DataError("it takes too much memory"))).encode(),
            )
        _write(answers, status, body)


def error_payload(error: CaliftError) -> dict[str, str]:
    """An error as it is told."""
    return {"code": error.code, "message": error.message, "hint": error.hint}


def limit(memory_bytes: int, *, writes: bool = True) -> None:
    """Limit what this process may take, before it reads what strangers made."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not writes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _write(stream: IO[bytes], status: int, body: bytes) -> None:
    stream.write(HEAD.pack(status, len(body)) + body)
    stream.flush()
