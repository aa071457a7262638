"""Work that a thread of its own repeats."""

import logging
import threading
from abc import ABC, abstractmethod

_log = logging.getLogger(__name__)


class Periodic(ABC):
    """A thread that repeats `run_once`. It outlives every failure; each outage is logged once.

    Args:
        name: of the thread, and in the log.
        every_s: seconds of rest in between.
    """

    def __init__(self, name: str, every_s: float) -> None:
        self._name, self._every_s, self._failing = name, every_s, False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=f"calift-{name}", daemon=True)

    @abstractmethod
    def run_once(self) -> None:
        """Do what there is to do; return early where `_stopping` is set."""

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 30.0) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _loop(self) -> None:
        while not self._stopping.wait(self._every_s):
            try:
                self.run_once()
            except Exception as error:
                if not self._failing:
                    _log.warning("the %s fails and will go on trying: %s", self._name, error)
                self._failing = True
            else:
                self._failing = False
