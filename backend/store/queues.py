"""Which worker may take which run, and what a waiting run waits for. No SQL here.

A run's queue is `cpu`, `gpu` or `mps`, or `auto`: then it is `gpu` as long as a worker that serves
`gpu` is there and well, else `cpu`. A run on several GPUs of a host is in `gpu-multi-N`; a worker
that holds as many or more serves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from calift_core.schema.spec import RunSpec


@dataclass(frozen=True)
class Live:
    """A worker that is there.

    Attributes:
        trouble: why it takes none; empty when it is well.
    """

    host: str
    queues: Sequence[str]
    busy: bool = False
    trouble: str = ""


_NEEDS = {
    "gpu": "a worker with a CUDA device (train.device: cuda)",
    "mps": "a worker on an Apple GPU (train.device: mps)",
    "cpu": "a worker that serves CPU runs",
}


MULTI = "gpu-multi-"


def multi_queues(gpus: int) -> tuple[str, ...]:
    """What a worker with so many GPUs serves beside single ones, the largest first."""
    return tuple(f"{MULTI}{n}" for n in range(gpus, 1, -1))


def queue_of(spec: RunSpec) -> str:
    """`cpu`, `gpu`, `gpu-multi-N` or `mps` where the spec names a device, else `auto`."""
    if spec.resources.gpus > 1:
        return f"{MULTI}{spec.resources.gpus}"
    return queue_of_device(spec.train.device)


def queue_of_device(device: str) -> str:
    return device if device in ("auto", "cpu", "mps") else "gpu"


def queue_for(queue: str, workers: Sequence[Live]) -> str:
    """The queue that the message of a run of this kind is sent to."""
    if queue != "auto":
        return queue
    return "gpu" if any("gpu" in w.queues and not w.trouble for w in workers) else "cpu"


def why_waits(queue: str, workers: Sequence[Live]) -> str:
    """What a queued run waits for; empty when a worker is about to take it."""
    if not workers:
        return "No worker has reported in lately; `calift up` starts one."
    wanted = queue_for(queue, workers)
    able = [w for w in workers if wanted in w.queues]
    if not able and wanted.startswith(MULTI):
        n = wanted.removeprefix(MULTI)
        return (
            f"It needs a worker with {n} GPUs (resources.gpus: {n}), and none has reported in. "
            f"CALIFT_WORKER_GPUS={n} in a worker's environment makes it take so many."
        )
    if not able:
        return (
            f"It needs {_NEEDS.get(wanted, f'a worker of {wanted!r}')}, and none has reported in. "
            "Start one, or submit the run with train.device: auto."
        )
    well = [w for w in able if not w.trouble]
    if not well:
        return "Every worker that could take it is out. " + " ".join(
            f"{w.host}: {w.trouble}" for w in able
        )
    if any(not w.busy for w in well):
        return ""
    return (
        "The worker that could take it is busy."
        if len(well) == 1
        else (f"All {len(well)} workers that could take it are busy.")
    )
