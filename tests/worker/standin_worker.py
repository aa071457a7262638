"""A real worker whose runner is the stand-in: `python standin_worker.py` with `CALIFT_…` set.

The lease times come as JSON in the first argument.
"""

import json
import sys
from pathlib import Path

from backend.queue import make_celery
from backend.settings import load_settings
from worker.limits import Limits
from worker.tasks import install

settings = load_settings()
app = make_celery(settings)
install(
    app,
    settings,
    limits=Limits(**json.loads(sys.argv[1])),
    runner_argv=[sys.executable, str(Path(__file__).with_name("standin_runner.py"))],
)
app.worker_main(["worker", "--loglevel=INFO", "--without-gossip", "--without-mingle"])
