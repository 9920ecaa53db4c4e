"""What a client may get wrong, and that none of it is a 5xx or an essay."""

import json
import shutil

import pytest

from vaegan.sampler import Sampler

GOOD = {"model": "chest", "class": "normal"}
BAD_BODIES = {
    "a count of 10^9": (GOOD | {"count": 10**9}, 422, "count is 1000000000, expected an integer from 1 to 100000"),
    "a count of 0": (GOOD | {"count": 0}, 422, "count is 0"),
    "a count with 400 digits": (GOOD | {"count": 10**400}, 422, "count"),
    "a negative seed": (GOOD | {"seed": -1}, 422, "seed is -1, expected an integer from 0"),
    "a seed of 2^63": (GOOD | {"seed": 2**63}, 422, "seed is 9223372036854775808"),
    "a negative start": (GOOD | {"start": -5}, 422, "start is -5"),
    "a count as text": (GOOD | {"count": "5"}, 422, 'count is "5"'),
    "a count as a float": (GOOD | {"count": 1.5}, 422, "count is 1.5"),
    "a count that is true": (GOOD | {"count": True}, 422, "count is true"),
    "a count of null": (GOOD | {"count": None}, 422, "count is null"),
    "a count that is a list": (GOOD | {"count": [1] * 1000}, 422, "count is [1, 1"),
    "a truncation above 2": (GOOD | {"truncation": 2.5}, 422, "truncation is 2.5, expected a number from 0 to 2"),
    "a model that isn't there": ({"model": "lungs"}, 422, 'no model "lungs", expected chest, findings, plain'),
    "a version that isn't there": (GOOD | {"version": "9"}, 422, 'no version "9" of model chest, expected 1, 2'),
    "an empty version": (GOOD | {"version": ""}, 422, 'no version ""'),
    "a path as a model": (GOOD | {"model": "../../etc/passwd"}, 422, "no model"),
    "an unknown class": (GOOD | {"class": "cat"}, 422, '"cat" is not a class of model chest/2, expected normal'),
    "no class where one is meant": ({"model": "chest"}, 422, "expected exactly one of normal"),
    "two exclusive classes": ({"model": "chest", "labels": ["normal", "effusion"]}, 422, "expected exactly one of"),
    "a class of a model without any": ({"model": "plain", "class": "normal"}, 422, "which has none"),
    "class and labels": (GOOD | {"labels": ["normal"]}, 422, "class and labels are both given"),
    "labels that are text": ({"model": "findings", "labels": "Mass"}, 422, 'labels is "Mass"'),
    "a label that is a number": ({"model": "findings", "labels": [1]}, 422, "labels.0 is 1"),
    "a label of 60,000 letters": ({"model": "findings", "labels": ["x" * 60000]}, 422, "labels.0 is"),
    "unknown latents": (GOOD | {"latent": "dream"}, 422, '"dream" is not one that model chest/2 has, expected prior'),
    "an unknown field": (GOOD | {"colour": "red"}, 422, 'unknown field "colour", expected some of class, count'),
    "no model": ({"class": "normal"}, 422, "model is missing"),
    "a list": ([GOOD], 422, "the body is not an object"),
    "null": (None, 422, "the body is"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_refused_in_one_sentence(service, name):
    body, status, words = BAD_BODIES[name]
    headers = {"Content-Type": "application/json"}
    answer = service.request("POST", "/v1/samples", content=json.dumps(body), headers=headers)
    check_problem(answer, status)
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"\xff\xfe\x00", 400),
        (b"[" * 60000, 400),
        (b'{"model": "chest", "class": "normal", "truncation": NaN}', 422),
        (b'{"model": "chest", "class": "normal", "truncation": Infinity}', 422),
        (b'{"model": "chest", "class": "normal", "truncation": 1e999}', 422),
        (b'{"model": "chest", "class": "\\ud800"}', 422),
        (b'{"model": "chest", "count": ' + b"9" * 10000 + b"}", 400),
        (b'{"model": "chest", "class": "normal", "\\ud800": 1}', 422),
        (b" " * 10_000_000, 413),
    ],
    ids=["empty", "cut short", "not UTF-8", "60,000 brackets", "NaN", "infinity", "1e999", "half a surrogate",
         "10,000 digits", "half a surrogate as a key", "10 MB"],
)  # fmt: skip
def test_bytes_that_are_no_request_are_refused(service, content, status):
    headers = {"Content-Type": "application/json"}
    check_problem(service.request("POST", "/v1/samples", content=content, headers=headers), status)


def test_a_body_sent_in_pieces_without_a_length_is_limited_too(service):
    async def pieces():
        for _ in range(1000):
            yield b" " * 1000

    answer = service.request("POST", "/v1/samples", content=pieces(), headers={"Content-Type": "application/json"})
    check_problem(answer, 413)


def test_a_form_as_curl_sends_it_by_default_is_told_about_the_content_type(service):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = service.request("POST", "/v1/samples", content=json.dumps(GOOD), headers=headers)
    check_problem(answer, 415)
    assert "application/json" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/models/lungs/1", 404),
        ("GET", "/v1/models/chest/9", 404),
        ("GET", "/v1/models/chest/9/card", 404),
        ("GET", "/v1/models/%2e%2e/%2e%2e/card", 404),
        ("GET", "/v1/models/chest/2/images/cat/1/0.png", 404),
        ("GET", "/v1/models/chest/2/images/none/1/0.png", 404),
        ("GET", "/v1/models/chest/2/images/normal+effusion/1/0.png", 404),
        ("GET", "/v1/models/chest/2/images/normal/1/0.jpg", 404),
        ("GET", "/v1/models/chest/2/images/normal/-1/0.png", 422),
        ("GET", "/v1/models/chest/2/images/normal/one/0.png", 422),
        ("GET", "/v1/models/chest/2/images/normal/1/0.5.png", 422),
        ("GET", "/v1/models/chest/2/images/normal/" + "9" * 5000 + "/0.png", 422),
        ("GET", "/v1/models/chest/2/images/normal/1/0.png?truncation=nan", 422),
        ("GET", "/v1/models/chest/2/images/normal/1/0.png?truncation=-inf", 422),
        ("GET", "/v1/models/chest/2/images/normal/1/0.png?latent=dream", 422),
        ("GET", "/v1/models/chest/2/images/%00/1/0.png", 404),
        ("GET", "/v1/models/findings/1/images/" + "Mass+" * 3000 + "/1/0.png", 404),
        ("GET", "/static/../../pyproject.toml", 404),
        ("GET", "/static/%2e%2e/%2e%2e/pyproject.toml", 404),
        ("GET", "/static/%00", 404),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/samples", 405),
        ("POST", "/", 405),
        ("POST", "/static/page.js", 405),
    ],
)
def test_a_path_that_names_nothing_is_a_problem_too(service, method, path, status):
    answer = service.request(method, path)
    check_problem(answer, status)
    if status == 405:
        assert answer.headers["allow"]


def check_problem(answer, status):
    """RFC 9457, and short: whatever was sent, the answer quotes no more than a few words of it."""
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert 20 < len(problem["detail"]) < 400
    assert "\n" not in problem["detail"]
    assert "Traceback" not in answer.text
    assert len(answer.content) < 2000
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_models_are_listed_with_what_a_request_needs(service):
    models = {f"{m['name']}/{m['version']}": m for m in service.get("/v1/models").json()["models"]}
    assert list(models) == ["chest/1", "chest/2", "findings/1", "plain/1"]
    assert [m["latest"] for m in models.values()] == [False, True, True, True]
    assert models["findings/1"]["task"] == "multilabel"
    assert models["chest/2"]["classes"] == ["normal", "consolidation", "effusion"]


def test_a_models_document_and_card_are_served_without_the_paths_of_whoever_trained_it(service):
    answer = service.get("/v1/models/chest/2")
    assert answer.json()["networks"]["latent_dim"] == 8
    assert "/home/somebody" not in answer.text
    card = service.get("/v1/models/chest/2/card")
    assert card.headers["content-type"].startswith("text/markdown")
    assert card.text.startswith("# chest/2")


def damaged(kind, folder):
    if kind == "json cut short":
        (folder / "model.json").write_text("{")
    elif kind == "weights changed":
        with open(folder / "model.safetensors", "r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x55")
    elif kind == "card gone":
        (folder / "card.md").unlink()
    elif kind == "a pickle named as weights":
        (folder / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n.")
    elif kind == "renamed":
        folder.rename(folder.with_name("3"))
    return folder


@pytest.mark.parametrize(
    "kind", ["json cut short", "weights changed", "card gone", "a pickle named as weights", "renamed"]
)
def test_a_damaged_model_is_listed_as_unavailable_and_the_others_answer(registry, tmp_path, service_of, kind, caplog):
    root = shutil.copytree(registry, tmp_path / "registry")
    damaged(kind, root / "chest" / "2")
    version = "3" if kind == "renamed" else "2"
    service = service_of(registry=root)
    ready = service.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["unavailable"] == [f"chest/{version}"]
    assert str(root) not in ready.text
    assert f"chest/{version} is unavailable" in caplog.text
    refused = service.post({"model": "chest", "version": version, "class": "normal"})
    check_problem(refused, 503)
    # a request without a version gets the newest that works
    assert service.post({"model": "chest", "class": "normal"}).headers["x-augray-version"] == "1"
    listed = {f"{m['name']}/{m['version']}": m["available"] for m in service.get("/v1/models").json()["models"]}
    assert listed[f"chest/{version}"] is False


def test_a_service_without_a_usable_model_is_alive_but_not_ready(registry, tmp_path, service_of):
    root = tmp_path / "registry"
    shutil.copytree(registry / "plain", root / "plain")
    damaged("json cut short", root / "plain" / "1")
    service = service_of(registry=root)
    assert service.get("/healthz").status_code == 200
    check_problem(service.get("/readyz"), 503)
    check_problem(service.post({"model": "plain"}), 503)


def test_an_unforeseen_failure_is_a_problem_without_its_reason(service_of, monkeypatch, caplog):
    service = service_of(raise_app_exceptions=False)
    monkeypatch.setattr(Sampler, "decode", lambda *a, **k: 1 / 0)
    answer = service.post(GOOD)
    check_problem(answer, 500)
    assert "ZeroDivisionError" in caplog.text
