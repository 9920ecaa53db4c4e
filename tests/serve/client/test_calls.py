"""The client's other calls, of either kind: what they send, and what they make of the answers."""

import inspect
import pickle

import httpx
import numpy as np
import pytest

from cluster.errors import UserError
from serve.client import AsyncClient, Client, ServiceError


def test_both_clients_offer_the_same():
    def public(kind):
        return {name for name in vars(kind) if not name.startswith("_")} - {"close", "aclose"}

    def arguments(method):
        return list(inspect.signature(method).parameters.values())

    assert public(Client) == public(AsyncClient)
    for name in public(Client):
        assert arguments(getattr(Client, name)) == arguments(getattr(AsyncClient, name))


def test_an_uploaded_image_travels_as_it_is_with_its_model_and_classes(service, connect):
    client = connect()
    encoding = client.call("encode", b"12345", "chest", ["mass", "normal"], version="1")
    assert (encoding.model, encoding.version, encoding.classes) == ("chest", "1", ("mass", "normal"))
    np.testing.assert_array_equal(encoding.mu, np.array([0.5, 5], np.float32))
    np.testing.assert_array_equal(encoding.log_var, np.array([0, -1], np.float32))
    assert client.call("anomaly", b"12345", "chest", "mass")["score"] == 1.5
    assert client.call("reconstruct", b"12345", "chest").shape == (16, 16, 1)
    sent = service.requests
    assert sent[0].headers["serve_multiplexed_model_id"] == "chest/1"
    assert [request.headers["content-type"] for request in sent] == ["application/octet-stream"] * 3
    assert [request.url.params.get_list("class") for request in sent] == [["mass", "normal"], ["mass"], []]
    assert [request.headers["accept"] for request in sent] == ["application/json", "application/json", "image/png"]
    with pytest.raises(UserError, match="empty"):
        client.call("encode", b"", "chest")


def test_a_way_between_two_addresses_is_rows_of_both_ends_and_between(service, connect):
    images = connect().call("interpolate", "chest", "mass", from_seed=1, to_seed=2, to_index=7, steps=3)
    assert list(images.image_id) == [f"chest/1/mass/1/0?to=2/7&at={at}" for at in (0.0, 0.5, 1.0)]
    assert len(images.pixels) == 3


def test_an_address_leads_to_its_path_and_to_a_replica_that_has_the_model(service, connect, made_up):
    assert connect().call("image", "chest/1/Büschel + Rest/1/0?latent=mixture").shape == (16, 16, 1)
    (request,) = service.requests
    assert request.url.raw_path == b"/v1/models/chest/1/images/B%C3%BCschel%20+%20Rest/1/0.png?latent=mixture"
    assert request.headers["serve_multiplexed_model_id"] == "chest/1"
    service.faults = [made_up.Fault(response=httpx.Response(200, content=b"no png"))]
    with pytest.raises(ServiceError, match="no PNG"):
        connect().call("image", "chest/1/mass/1/0")


def test_failures_that_pass_are_retried_in_calls_too(service, connect, made_up):
    service.faults = [
        made_up.Fault(error=httpx.ConnectError("refused")),
        made_up.Fault(response=httpx.Response(503, headers={"Retry-After": "3"})),
    ]
    client = connect()
    assert client.call("models")[0]["classes"] == ["normal", "effusion", "mass"]
    assert (len(service.requests), client.waits[1]) == (3, 3)
    service.faults = [made_up.Fault(response=httpx.Response(401, json={"detail": "no key"}))]
    with pytest.raises(ServiceError, match="no key"):
        client.call("models")
    assert len(service.requests) == 4


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"{}", b'{"models": 3}'])
def test_json_of_something_else_is_said_so(service, connect, made_up, content):
    service.faults = [made_up.Fault(response=httpx.Response(200, content=content))]
    with pytest.raises(ServiceError, match="is it this service"):
        connect().call("models")


def test_the_key_comes_from_the_argument_or_else_from_the_environment(service, connect, monkeypatch):
    connect().call("models")
    monkeypatch.setenv("AUGRAY_API_KEY", "from-the-environment")
    connect().call("models")
    connect(api_key="from-the-argument").call("models")
    keys = [request.headers.get("x-api-key") for request in service.requests]
    assert keys == [None, "from-the-environment", "from-the-argument"]


def test_every_attempt_has_an_id_that_an_error_names(service, connect, made_up):
    service.faults = [
        made_up.Fault(error=httpx.ConnectError("refused")),
        made_up.Fault(response=httpx.Response(403, text="a proxy's words")),
    ]
    with pytest.raises(ServiceError, match="is it this service") as caught:
        connect().call("models")
    ids = [request.headers["x-request-id"] for request in service.requests]
    assert len(set(ids)) == 2
    assert caught.value.request_id == ids[1]


@pytest.mark.parametrize("url", ["localhost:8000", "http://", "ftp://host", ""])
def test_what_is_no_url_is_named_when_the_client_is_made(url):
    with pytest.raises(UserError, match="no URL"):
        Client(url)


def test_an_error_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(ServiceError(429, "too much", "id", 3.0)))
    assert (error.status, str(error), error.request_id, error.retry_after_s) == (429, "too much", "id", 3.0)
