"""Questions and answers between a server and its processes: bytes with their length in front.

A question is a length (4 bytes, the highest first) and so many bytes; an answer has one byte more
in front, 0 where it is one and 1 where it is an error as JSON (`code`, `message`, `hint`). Nothing
is unpickled on either side. Torch-free.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from typing import IO

from calift_core.errors import CaliftError

LENGTH = struct.Struct(">I")
HEAD = struct.Struct(">BI")
#: No question and no answer is larger.
MOST_BYTES = 1 << 30


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
    hello: bytes,
    answer: Callable[[bytes], bytes],
    questions: IO[bytes] | None = None,
    answers: IO[bytes] | None = None,
) -> None:
    """Say hello, then answer until there is nothing more to read.

    Args:
        hello: what the server is told first, as an answer.
        answer: of one question; a `CaliftError` is told, others end the process.
        questions: standard input if not given.
        answers: standard output if not given.
    """
    questions, answers = questions or sys.stdin.buffer, answers or sys.stdout.buffer
    _write(answers, 0, hello)
    while (head := read_exactly(questions, LENGTH.size)) is not None:
        question = read_exactly(questions, LENGTH.unpack(head)[0])
        if question is None:
            return
        try:
            status, body = 0, answer(question)
        except CaliftError as error:
            told = {"code": error.code, "message": error.message, "hint": error.hint}
            status, body = 1, json.dumps(told).encode()
        _write(answers, status, body)


def _write(stream: IO[bytes], status: int, body: bytes) -> None:
    stream.write(HEAD.pack(status, len(body)) + body)
    stream.flush()
