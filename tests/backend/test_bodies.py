"""The body of a submission: a RunSpec, bare or with what goes around it; and what describes it."""

import json
import re

import pytest
from starlette.testclient import TestClient

from backend.main import create_app
from calift_core.schema.spec import RunSpec
from tests.backend.test_api import problem
from tests.conftest import as_admin

SPEC = {"name": "a run", "method": {"kind": "carot"}}


def test_submit__bare_spec_is_the_same_as_a_wrapped_one(api):
    key = {"Idempotency-Key": "one"}
    wrapped = api.post("/api/v1/runs", json={"spec": SPEC}, headers=key)
    bare = api.post("/api/v1/runs", json=SPEC, headers=key)
    assert (wrapped.status_code, bare.status_code) == (202, 202), bare.text
    assert bare.json() == wrapped.json(), "one key, one meaning, one run"
    assert api.post("/api/v1/runs", json=SPEC).json()["spec"] == wrapped.json()["spec"]
    assert api.post("/api/v1/runs/validate", json=SPEC).json() == (
        api.post("/api/v1/runs/validate", json={"spec": SPEC}).json()
    )


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (SPEC | {"train": {"lr": -1}}, {"#/train/lr"}),
        ({"spec": SPEC | {"train": {"lr": -1}}}, {"#/spec/train/lr"}),
        ({"spec": SPEC, "priority": 11}, {"#/priority"}),
        ({"spec": SPEC, "extra": 1}, {"#/extra"}),
        ({"spec": [1]}, {"#/spec"}),
        (SPEC | {"priority": 3}, {"#/priority"}),
        (SPEC | {"notes": "a\x00b"}, {"#/notes"}),
        ({}, {"#/name", "#/method"}),
    ],
)
def test_submit__pointers_are_into_the_body_that_was_sent(api, body, pointers):
    for path in ("/api/v1/runs", "/api/v1/runs/validate"):
        response = api.post(path, json=body)
        assert response.status_code in (200, 422), response.text
        assert {e["pointer"] for e in response.json()["errors"]} == pointers, path


@pytest.mark.parametrize("body", ["[]", '"text"', "3", "null", "NaN"])
def test_submit__what_is_no_object_is_422(api, body):
    headers = {"content-type": "application/json"}
    found = problem(api.post("/api/v1/runs", content=body, headers=headers), 422, "INVALID_REQUEST")
    assert found.errors[0]["pointer"] == "#"


def test_submit__description_says_both(app):
    document = app.openapi()
    for path in ("/api/v1/runs", "/api/v1/runs/validate"):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"]["anyOf"] == [
            {"$ref": "#/components/schemas/RunSpec"},
            {"$ref": "#/components/schemas/RunSubmit"},
        ]
        for example in content["examples"].values():
            value = example["value"]
            RunSpec.model_validate(value.get("spec", value))
    for reference in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)):
        assert reference in document["components"]["schemas"]


def test_docs__are_open_on_loopback(bare, app):
    document = bare.get("/api/v1/openapi.json")
    assert document.status_code == 200
    assert document.json() == json.loads(json.dumps(app.openapi()))
    page = bare.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in app.openapi()["paths"]:
        assert path.replace("{", "&#123;") in page.text or path in page.text
    # Nothing is fetched from elsewhere and nothing runs: the page must work without a network.
    assert "<script" not in page.text
    assert not re.search(r"(?:src|href)=\"https?://", page.text)
    # A page of another origin cannot have it through a name of its own.
    assert bare.get("/docs", headers={"host": "evil.example"}).status_code == 400


def test_docs__take_a_token_where_others_reach_them(make_settings, sqlite_url):
    token = "ci." + "s" * 32
    settings = make_settings(
        database_url=sqlite_url, host="0.0.0.0", token=token, allowed_hosts=["calift.example"]
    )
    with as_admin(settings, base_url="http://calift.example") as caller:
        for path in ("/docs", "/api/v1/openapi.json"):
            problem(caller.get(path, headers={"Authorization": ""}), 401, "UNAUTHENTICATED")
            assert caller.get(path).status_code == 200


def test_unauthenticated__names_the_way_of_the_deployment(
    make_settings, sqlite_url, bare, settings
):
    for path in ("/api/v1/runs", "/nowhere"):
        for headers in ({}, {"Authorization": "Bearer a.bbbbbbbbbbbbbbbbbbbbbbb"}):
            found = bare.get(path, headers=headers).json()
            assert "CALIFT_HOME/token" in found["hint"]
            assert ".env" not in found["hint"]
    given = make_settings(database_url=sqlite_url, token="ci." + "s" * 32)
    app = create_app(given, housekeeping=False)
    with TestClient(app, base_url="http://127.0.0.1") as caller:
        for path in ("/api/v1/runs", "/nowhere"):
            hint = caller.get(path).json()["hint"]
            assert "CALIFT_TOKEN" in hint
            assert ".env" in hint
            assert "token add" in hint
            assert "CALIFT_HOME/token" not in hint
            assert "ssss" not in hint
