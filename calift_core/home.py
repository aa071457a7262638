"""Where calift keeps what it makes: one folder, `CALIFT_HOME`.

::

    CALIFT_HOME/
      calift.db          the embedded database
      token              the API token (0600)
      artifacts/         content-addressed files of runs
      jobs/RUN/ATTEMPT/  working folders of runners
      models/            pre-trained weights made here
      cache/             what can be made again: decoded and corrupted images
      logs/  run/        logs, sockets and process ids of the embedded stack
"""

import os
from pathlib import Path

import platformdirs


def calift_home() -> Path:
    """The folder named by `CALIFT_HOME`, else the user's data folder. It may not exist yet."""
    named = os.environ.get("CALIFT_HOME")
    if named:
        return Path(named).expanduser().absolute()
    return Path(platformdirs.user_data_dir("calift", appauthor=False))


def stack_file() -> Path:
    """The file in which a running stack names its process, its addresses and its logs."""
    return calift_home() / "run" / "stack.json"


def cache_dir() -> Path:
    """Files that can be made again."""
    return calift_home() / "cache"


def models_dir() -> Path:
    """Weights that calift pre-trained here."""
    return calift_home() / "models"
