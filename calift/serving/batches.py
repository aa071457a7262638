"""Requests that come at the same time share a pass of the model."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from calift_core.child_process import Child, ChildEndedError

#: How often a batch is tried on a process that ends under it.
TRIES = 3


class BusyError(Exception):
    """More images wait than may."""


@dataclass
class _Waiting:
    pixels: bytes
    answer: asyncio.Future[NDArray[np.float64]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Batches:
    """Hands images to the processes that hold the model, several at once.

    A process that ends under a batch costs nothing: the batch is tried again, by another or by the
    one that takes its place.

    Args:
        n_numbers: that the process answers for each image.
        max_waiting: images that may wait; more are refused.
        linger_s: how long the first image of a batch waits for company where a process is free.
    """

    def __init__(
        self,
        workers: Sequence[Child],
        n_numbers: int,
        *,
        max_batch: int = 32,
        max_waiting: int = 1024,
        linger_s: float = 0.002,
    ) -> None:
        self._workers, self._n_numbers = list(workers), n_numbers
        self._max_batch, self._max_waiting, self._linger_s = max_batch, max_waiting, linger_s
        self._line: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(len(self._workers), thread_name_prefix="answers")
        self._tasks: list[asyncio.Task[None]] = []
        self.passes = self.images = self.again = 0

    @property
    def waiting(self) -> int:
        """Images that no process has yet."""
        return self._line.qsize()

    def start(self) -> None:
        """Begin to serve, in the running loop."""
        self._tasks = [asyncio.create_task(self._serve(worker)) for worker in self._workers]

    async def stop(self) -> None:
        """End; who still waits is told so."""
        for worker in self._workers:
            worker.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._line.empty():
            self._line.get_nowait().answer.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def answer(self, images: Sequence[bytes]) -> list[NDArray[np.float64]]:
        """The numbers of each image of S · S · 3 bytes.

        Raises:
            BusyError: too many wait.
            ChildEndedError: the model's process ended under it again and again.
        """
        if self._line.qsize() >= self._max_waiting:
            raise BusyError
        waiting = [_Waiting(pixels) for pixels in images]
        for one in waiting:
            self._line.put_nowait(one)
        return await asyncio.gather(*(one.answer for one in waiting))

    async def _serve(self, worker: Child) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next()
            question = b"".join(one.pixels for one in batch)
            for tried in range(1, TRIES + 1):
                try:
                    body = await loop.run_in_executor(self._threads, worker.ask, question)
                except ChildEndedError as error:
                    self.again += 1
                    if tried == TRIES:
                        _fail(batch, error)
                except Exception as error:  # nobody may wait for ever
                    _fail(batch, error)
                    break
                else:
                    rows = np.frombuffer(body, "<f8").reshape(len(batch), self._n_numbers)
                    for one, row in zip(batch, rows, strict=True):
                        if not one.answer.done():  # whoever asked may be gone
                            one.answer.set_result(row)
                    self.passes += 1
                    self.images += len(batch)
                    break

    async def _next(self) -> list[_Waiting]:
        batch = [await self._line.get()]
        if self._line.empty() and self._linger_s:
            await asyncio.sleep(self._linger_s)
        while len(batch) < self._max_batch and not self._line.empty():
            batch.append(self._line.get_nowait())
        return [one for one in batch if not one.answer.cancelled()] or await self._next()


def _fail(batch: Sequence[_Waiting], error: Exception) -> None:
    for one in batch:
        if not one.answer.done():
            one.answer.set_exception(error)
