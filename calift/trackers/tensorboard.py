"""`tensorboard:FOLDER`: event files, a folder a run.

Scalars of event files are 32-bit floats.
"""

import importlib.util
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calift.trackers.runs import Exchanged
from calift_core.errors import SpecError
from calift_core.installed import install_extra

_PATTERN = "events.out.tfevents.*"
_SETTINGS = "config/text_summary"
#: Numbers of the finished run stand below this, at the last step.
_FINAL = "final/"


def _need() -> None:
    if importlib.util.find_spec("tensorboard") is None:
        raise SpecError(
            "event files need tensorboard, which is not installed.",
            hint=install_extra("tensorboard"),
        )


def push(runs: Sequence[Exchanged], place: str, *, again: bool) -> list[str]:
    """Write a folder with an event file for each run; returns the folders.

    Raises:
        SpecError: tensorboard is not installed.
        SpecError: the run is there already, and not `again`.
    """
    _need()
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    written = []
    for run in runs:
        folder = Path(place) / (re.sub(r"[^\w.+ -]+", "_", f"{run.name}-{run.id}").strip())
        earlier = sorted(folder.glob(_PATTERN))
        if earlier and not again:
            raise SpecError(
                f"{str(folder)!r} holds event files already.",
                hint="--again replaces what was pushed.",
            )
        for path in earlier:
            path.unlink()
        writer = EventFileWriter(str(folder))
        now = time.time()
        points = [
            (step, series.name, value)
            for series in run.curves.series
            for step, value in zip(series.steps, series.values, strict=True)
        ]
        last = max(run.curves.last_step, 0)
        points += [(last, f"{_FINAL}{name}", value) for name, value in run.numbers.items()]
        for step, name, value in sorted(points, key=lambda p: p[0]):
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            writer.add_event(Event(wall_time=now, step=step, summary=summary))
        writer.add_event(Event(wall_time=now, step=0, summary=_settings(run)))
        writer.close()
        written.append(str(folder))
    return written


def _settings(run: Exchanged) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    words = json.dumps({"name": run.name, "id": run.id, "settings": dict(run.settings)})
    tensor = TensorProto(
        dtype="DT_STRING", string_val=[words.encode()], tensor_shape=TensorShapeProto()
    )
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    return Summary(value=[Summary.Value(tag=_SETTINGS, tensor=tensor, metadata=metadata)])
