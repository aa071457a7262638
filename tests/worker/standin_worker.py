"""A real worker whose runner is the stand-in: `python standin_worker.py` with `CALIFT_…` set.

The lease times come as JSON in the first argument; the second may say `real`, for the real runner.
"""

import json
import sys
from pathlib import Path

from backend.dispatch.queue import make_celery
from backend.settings import load_settings
from worker.limits import Limits
from worker.runner import RUNNER_ARGV
from worker.tasks import install

standin = [sys.executable, str(Path(__file__).with_name("standin_runner.py"))]
settings = load_settings()
app = make_celery(settings)
install(
    app,
    settings,
    limits=Limits(**json.loads(sys.argv[1])),
    runner_argv=RUNNER_ARGV if sys.argv[2:] == ["real"] else standin,
)
app.worker_main(["worker", "--loglevel=INFO", "--without-gossip", "--without-mingle"])
