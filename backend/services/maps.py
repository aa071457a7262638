"""Maps of image features: made when first asked for by a process of its own, and kept.

One is made at a time; of 50,000 images it takes minutes.
"""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from backend.children.model_process import child, environment
from backend.http.problems import HttpError
from backend.settings import Settings
from calift_core.analysis.library import PredictionsFile
from calift_core.child_process import ask_once
from calift_core.errors import CaliftError, SpecError
from calift_core.files.disk_cache import DiskCache
from calift_core.schema.wire.tags import MapState

_MEMORY_BYTES, _TIMEOUT_S = 6 << 30, 3600.0
#: Maps that are made or wait, and failures that are remembered.
_WAITING, _REMEMBERED = 4, 100


class Maps:
    """Makes maps into the cache that the library reads them from."""

    def __init__(self, settings: Settings, kept: DiskCache) -> None:
        self._settings, self._kept = settings, kept
        # The kernel ties a child to the thread that started it: this one lives as long as we do.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="maps")
        self._making: dict[str, Future[None]] = {}
        self._lock = threading.Lock()

    def state(self, file: PredictionsFile) -> tuple[MapState, str]:
        """How far a map is that is not kept, and why there is none where it failed."""
        made = self._making.get(file.digest)
        if made is None:
            return "none", ""
        if not made.done():
            return "making", ""
        error = made.exception()
        if error is None:
            return "none", ""  # it was made, and has made room since
        return "failed", error.message if isinstance(error, CaliftError) else "it ended"

    def begin(self, file: PredictionsFile) -> None:
        """Have a map made, unless it is being made.

        Raises:
            HttpError: 503, others are made first.
        """
        with self._lock:
            made = self._making.pop(file.digest, None)
            if made is None or made.done():
                if sum(not one.done() for one in self._making.values()) >= _WAITING:
                    raise HttpError(
                        503, "BUSY", f"{_WAITING} maps of features are made or wait.",
                        hint="Try again later.", headers={"Retry-After": "30"},
                    )  # fmt: skip
                made = self._thread.submit(self._make, file)
            self._making[file.digest] = made
            while len(self._making) > _REMEMBERED:
                self._making.pop(next(iter(self._making)))

    def _make(self, file: PredictionsFile) -> None:
        maker = child(
            "calift_core.analysis.feature_map",
            str(_MEMORY_BYTES),
            environment=environment(self._settings) | {"OMP_NUM_THREADS": "1"},
            timeout_s=_TIMEOUT_S,
            start_s=_TIMEOUT_S,
            refusal=SpecError,
        )
        self._kept.put(file.digest, ask_once(maker, str(file.path).encode()))

    def stop(self) -> None:
        """Make no more; the one that is being made ends with this process."""
        self._thread.shutdown(wait=False, cancel_futures=True)
