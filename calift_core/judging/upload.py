"""The service's judgement of uploaded predictions files, in a process of its own."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from calift_core.child_process import answer_all, limit
from calift_core.errors import PredictionsError
from calift_core.judging.files import PredictionsFile, judge_files
from calift_core.judging.judgement import Judgement
from calift_core.predictions.foreign.source import MAX_BYTES
from calift_core.schema.wire.judging import AGAINST

#: Files of one question.
MOST_FILES = 32


def judge_upload(folder: Path) -> Judgement:
    """Judge the predictions files in the zip `folder/upload`, in its order.

    For a process of its own: a hostile file may make the decoder take all memory that it may have,
    or end it.

    Raises:
        PredictionsError: the upload is refused.
    """
    try:
        with zipfile.ZipFile(folder / "upload") as archive:
            files = [i for i in archive.infolist() if not i.is_dir()]
            if not 1 <= len(files) <= MOST_FILES:
                raise PredictionsError(
                    f"the upload must hold 1 to {MOST_FILES} files, got {len(files)}"
                )
            declared = sum(info.file_size for info in files)
            if declared > MAX_BYTES:
                raise PredictionsError(
                    f"the files must unpack to at most {MAX_BYTES:,} bytes, they declare "
                    f"{declared:,}"
                )
            named = [
                (info.filename, _unpacked(archive, info, folder / f"file-{at}"))
                for at, info in enumerate(files)
            ]
        own: list[PredictionsFile] = []
        others: list[PredictionsFile] = []
        for name, path in named:
            *folders, last = PurePosixPath(name).parts
            (others if folders[:1] == [AGAINST] else own).append(PredictionsFile(last, path))
        if not own or len(others) > 1:
            raise PredictionsError(
                "the upload must hold a file of the model and at most one in the folder "
                f"{AGAINST!r}, got {len(own)} and {len(others)}"
            )
        return judge_files(own, against=others[0] if others else None)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise PredictionsError(f"the upload must be a readable zip, got: {error}") from None
    except MemoryError:
        raise PredictionsError(
            "the upload must be decoded within the memory that an import may take"
        ) from None


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Path:
    """A member as a file of our name; `zipfile` gives no more bytes than are declared."""
    with archive.open(info) as member, path.open("wb") as file:
        shutil.copyfileobj(member, file)
    return path


def _answer(question: bytes) -> bytes:
    return json.dumps(judge_upload(Path(json.loads(question)["folder"])).to_dict()).encode()


if __name__ == "__main__":
    limit(int(sys.argv[1]))
    answer_all(b"{}", _answer)
