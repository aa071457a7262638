"""The Celery application of a worker: `celery -A worker.app worker`."""

from backend.dispatch.queue import make_celery
from backend.settings import load_settings
from worker.tasks import install

_settings = load_settings()

app = make_celery(_settings)
install(app, _settings)
