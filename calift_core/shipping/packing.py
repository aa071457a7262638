"""The process that exports a finished run for the service, as a zip.

`python -m calift_core.shipping.packing RUN FILE.zip CALIBRATOR [INITIAL]` chooses the calibrator as
`calift calibrate` does, writes what `calift export` writes, and packs it; its last line is `{}`, or
what stands in the way as JSON.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

from calift_core import threads
from calift_core.errors import CaliftError
from calift_core.files import atomic_path
from calift_core.shipping.choosing import choose_calibrator, save_choice


def pack(run: Path, target: Path, calibrator: str, initial: Path | None = None) -> None:
    """Export a run and pack it; the zip is there when it is whole.

    Args:
        run: folder of a finished run; the choice is kept in it.
        calibrator: its kind, `none`, or `auto`.
        initial: folder of the zero-shot run of its start, for calibrators that read its logits.

    Raises:
        CaliftError: the run has no model, the calibrator cannot be fitted, or a file not written.
    """
    from calift_core.shipping.export import export_run

    save_choice(run, choose_calibrator(run, calibrator, initial=initial), initial=initial)
    made = run / "exported"
    export_run(run, made)
    # Weights hardly shrink.
    with atomic_path(target) as path, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as packed:
        for file in sorted(file for file in made.rglob("*") if file.is_file()):
            packed.write(file, f"model/{file.relative_to(made).as_posix()}")


def main(argv: list[str]) -> None:
    """Export, pack, and say how it went."""
    threads.settle()
    answers, sys.stdout = sys.stdout, sys.stderr
    told: dict[str, str] = {}
    try:
        pack(Path(argv[0]), Path(argv[1]), argv[2], *map(Path, argv[3:4]))
    except CaliftError as error:
        told = {"message": error.message, "hint": error.hint}
    answers.write(f"{json.dumps(told)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
