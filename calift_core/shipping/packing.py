"""The process that exports a finished run for the service, as a zip.

Its question is JSON, the arguments of `pack`: it chooses the calibrator as `calift calibrate` does,
writes what `calift export` writes, and packs it.
"""

import json
import zipfile
from pathlib import Path

from calift_core import threads
from calift_core.child_process import answer_all
from calift_core.files import atomic_path
from calift_core.shipping.choosing import choose_calibrator, save_choice


def pack(
    run: Path, target: Path, calibrator: str, initial: Path | None = None, *, onnx: bool = False
) -> None:
    """Export a run and pack it; the zip is there when it is whole.

    Args:
        run: folder of a finished run; the choice is kept in it.
        calibrator: its kind, `none`, or `auto`.
        initial: folder of the zero-shot run of its start, for calibrators that read its logits.
        onnx: with the graph.

    Raises:
        CaliftError: the run has no model, the calibrator cannot be fitted, or a file not written.
    """
    from calift_core.shipping.export import export_run

    save_choice(run, choose_calibrator(run, calibrator, initial=initial), initial=initial)
    made = run / "exported"
    export_run(run, made, onnx=onnx)
    # Weights hardly shrink.
    with atomic_path(target) as path, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as packed:
        for file in sorted(file for file in made.rglob("*") if file.is_file()):
            packed.write(file, f"model/{file.relative_to(made).as_posix()}")


def answer(question: bytes) -> bytes:
    """Export and pack; the answer is empty."""
    request = json.loads(question)
    initial = request["initial"] and Path(request["initial"])
    run, target = Path(request["run"]), Path(request["target"])
    pack(run, target, request["calibrator"], initial, onnx=request["onnx"])
    return b""


if __name__ == "__main__":
    threads.settle()
    answer_all(b"{}", answer)
