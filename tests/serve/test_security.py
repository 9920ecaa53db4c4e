import hashlib
from pathlib import Path

import pytest

from serve.access.keyfile import Key
from serve.security import is_loopback

KEY, OTHER = "k" * 24, "an-other-key-of-enough-letters"
KEYS = (Key(name="lab", sha256=hashlib.sha256(KEY.encode()).hexdigest()),)
V1 = ["/v1/models", "/v1/models/chest/2", "/v1/models/chest/2/card", "/v1/models/chest/2/images/normal/1/0.png"]
OPEN = ["/", "/healthz", "/readyz", "/openapi.json", "/static/page.js"]


@pytest.mark.parametrize("path", V1)
def test_every_v1_route_needs_a_key_where_there_are_keys(service_of, path):
    service = service_of(keys=KEYS)
    for headers in ({}, {"X-API-Key": OTHER}, {"X-API-Key": ""}, {"X-API-Key": KEY + "k"}, {"X-API-Key": b"\xff\xfe"}):
        answer = service.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"]
    assert service.get(path, headers={"X-API-Key": KEY}).status_code == 200


def test_sampling_needs_a_key_before_the_body_is_looked_at(service_of):
    service = service_of(keys=KEYS)
    assert service.post({"model": "nonsense"}).status_code == 401
    answer = service.request(
        "POST", "/v1/samples", json={"model": "chest", "class": "normal"}, headers={"X-API-Key": KEY}
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("path", OPEN)
def test_health_and_the_page_need_no_key_and_serve_any_host(service_of, path):
    assert service_of(keys=KEYS, peer="192.0.2.7").get(path).status_code == 200


def test_a_key_serves_any_host(service_of):
    service = service_of(keys=KEYS, peer="192.0.2.7")
    assert service.get("/v1/models", headers={"X-API-Key": KEY}).status_code == 200


def test_images_asked_for_with_a_key_stay_out_of_shared_caches(service_of):
    answer = service_of(keys=KEYS).get(V1[-1], headers={"X-API-Key": KEY})
    assert answer.headers["cache-control"].startswith("private")


@pytest.mark.parametrize("path", V1)
def test_without_keys_other_hosts_are_refused_whatever_the_socket(service_of, path):
    answer = service_of(peer="192.0.2.7").get(path)
    assert answer.status_code == 403
    assert "api_keys=FILE" in answer.json()["detail"]
    assert service_of(peer="127.0.0.1").get(path).status_code == 200
    assert service_of(peer="192.0.2.7", allow_anonymous=True).get(path).status_code == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False), ("::ffff:10.0.0.1", False), ("0.0.0.0", False), ("", False), ("localhost.evil", False),
    ],
)  # fmt: skip
def test_loopback_is_told_from_the_network(host, expected):
    assert is_loopback(host) is expected


def test_the_page_loads_nothing_from_elsewhere_and_has_nothing_inline():
    static = Path(__file__).parents[2] / "serve" / "static"
    for file in static.iterdir():
        text = file.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "http://" not in text
        assert "https://" not in text
    page = (static / "index.html").read_text()
    assert page.count("<script") == 1
    assert "<style" not in page
    assert " style=" not in page
    assert " onclick=" not in page
