"""An API without torch has its models loaded by another process, a real one here."""

# ruff: noqa: F811
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from backend.http.middleware import PICTURE_TYPE
from backend.main import create_app
from backend.settings import Settings
from calift_core.analysis.choosing import read_choice
from calift_core.errors import ServiceError
from calift_core.shipping.classifier import CalibratedClassifier
from tests.backend.test_evaluation_jobs import folder  # noqa: F401
from tests.command.conftest import configs, one_thread, photos  # noqa: F401
from tests.conftest import free_port, serving, until
from tests.support.finished import store_run
from tests.support.parts import environment_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def host(settings, tmp_path):
    """`python -m backend models` on the same home: its address and the process."""
    port = free_port()
    models_url = f"http://127.0.0.1:{port}"  # it must not ask itself
    environment = environment_of(
        settings.home, database_url=settings.database_url, port=port, models_url=models_url
    )
    with (tmp_path / "models.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "backend", "models"],
            cwd=ROOT, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def answers():
        assert process.poll() is None, (tmp_path / "models.log").read_text()
        try:
            return httpx.get(f"{url}/api/v1/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(answers, what="the process that loads models to answer", timeout_s=120)
        yield url, process
    finally:
        process.kill()
        process.wait()


def assert_the_administrator_alone_is_answered(url: str, settings: Settings) -> None:
    """And nothing else than models."""
    body: dict[str, Any] = {"content": b"x", "headers": {"Content-Type": PICTURE_TYPE}}
    assert httpx.post(f"{url}/runs/r/try", **body).status_code == 401
    assert httpx.get(f"{url}/runs/r/model").status_code == 401
    admin = {"Authorization": f"Bearer {settings.admin_token()}"}
    for path in ("runs", "datasets", "tokens", "openapi.json", "docs"):
        assert httpx.get(f"{url}/{path}", headers=admin).status_code == 404, path


def test_models_url__another_process_answers_exports_and_refuses_as_this_one_would(
    settings, host, folder, photos, finished_run, tmp_path
):
    from calift_core.client import Client

    url, process = host
    app = create_app(settings.model_copy(update={"models_url": url}), housekeeping=False)
    services = app.state.services
    path = next(photos.rglob("*.png"))
    with serving(app) as address, Client(address, settings.admin_token(), timeout_s=300) as client:
        run_id = store_run(services.store, services.artifacts, folder)
        empty = finished_run(services.store, services.artifacts)
        output = client.try_picture(run_id, path)
        features = client.text_features(run_id, text="red on white").values
        packed = client.download_model(run_id, tmp_path / "m.zip", calibrator="temperature")
        with pytest.raises(ServiceError, match="no finished model") as refused:
            client.try_picture(empty, path)
        assert refused.value.status == 409
        with pytest.raises(ServiceError, match="nothing") as refused:
            client.try_picture("nothing", path)
        assert refused.value.status == 404
        with pytest.raises(ServiceError) as refused:
            client.try_picture(run_id, b"GIF89a" + bytes(40))
        assert (refused.value.status, refused.value.problem["code"]) == (422, "IMAGE_UNREADABLE")
        assert not services.trials._hosts
        assert_the_administrator_alone_is_answered(f"{url}/api/v1", settings)

        process.send_signal(signal.SIGKILL)
        process.wait()
        with pytest.raises(ServiceError, match="loads models does not answer") as refused:
            client.try_picture(run_id, path)
        assert (refused.value.status, refused.value.problem["code"]) == (503, "MODELS_AWAY")

    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path)
    shipped = CalibratedClassifier.load(tmp_path / "model", device="cpu")
    assert shipped.calibrator is not None
    (chosen,) = (read_choice(p.parent) for p in settings.home.rglob("calibrator.json"))
    shipped.calibrator = chosen.fitted()
    assert features == pytest.approx(shipped.encode_text("red on white").tolist(), abs=1e-5)
    # As `test_trying` has it of an API with torch: the page's names of classes, where the model
    # answers with those of the folders.
    expected = [
        (label.replace("_", " "), pytest.approx(probability, abs=1e-6))
        for label, probability in shipped.predict([path]).top()[0]
    ]
    assert [(guess.label, guess.probability) for guess in output.top] == expected


@pytest.mark.parametrize("url", ["models:8000", "ftp://a", "http://a/b", "http://u:p@a", "http://"])
def test_models_url__that_is_no_address_is_refused(settings, url):
    with pytest.raises(ValueError, match="models_url"):
        Settings(home=settings.home, models_url=url)
