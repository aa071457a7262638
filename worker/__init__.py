"""The Celery worker: claims a job, supervises its runner, records what it says. Torch-free."""
