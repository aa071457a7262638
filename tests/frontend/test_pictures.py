"""Figures as files: every one is drawn, and nothing that is said looks like a failure."""

import array
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from frontend import pictures
from tests.conftest import unavailable

ROOT = Path(__file__).parents[2]


def last_words() -> None:
    """Chrome's last message and the word that its end leaves behind, read as one.

    Seen at the end of a drawing on a busy machine; here with the library's own pipe, no chance.
    """
    from choreographer.channels import Pipe

    pipe = Pipe()
    pipe.open()
    os.write(pipe.from_external_to_choreo, b'{"id":1,"result":{}}\0{bye}\n')
    reader = threading.Thread(target=pipe.read_jsons)
    reader.start()
    waiting = array.array("i", [1])
    while waiting[0]:  # until all of it was taken, and the reader waits for the message's end
        fcntl.ioctl(pipe._read_from_browser, termios.FIONREAD, waiting)
    os.close(pipe.from_external_to_choreo)
    pipe.close()
    reader.join()


@pytest.mark.skipif(sys.platform == "win32", reason="another kind of pipe")
def test_quiet__keeps_the_last_words_of_chrome_to_itself(caplog):
    last_words()
    assert "JSONError" in caplog.text  # the library's fault; once it is mended, `quiet` can go
    caplog.clear()
    with pictures.quiet():
        last_words()
        logging.getLogger("calift").error("ours")
    assert [r.getMessage() for r in caplog.records] == ["ours"]
    logging.getLogger("choreographer").error("later")
    assert "later" in caplog.text


@pytest.mark.browser
def test_draw__every_figure_in_one_go_and_without_a_word(tmp_path):
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        unavailable("no chromium on this machine")
    code = (
        "import logging, plotly.graph_objects as go\n"
        "from pathlib import Path\n"
        "from frontend import pictures\n"
        "logging.basicConfig(level=logging.ERROR)\n"
        "made = {n: go.Figure(go.Scatter(y=[1, 3, 2])).update_layout(title=n, "
        "yaxis_tickformat='$~%') for n in 'abc'}\n"
        "for name, data in pictures.draw(made).items():\n"
        "    Path(name).write_bytes(data)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for name in "abc":
        drawn = (tmp_path / name).read_text()
        assert drawn.startswith("<svg")
        assert f">{name}</text>" in drawn
        assert ">150\xa0%</text>" in drawn
