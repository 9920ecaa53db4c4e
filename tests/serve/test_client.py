"""The client against the real application, with failures put in between."""

import asyncio

import httpx
import numpy as np
import pytest

import serve.client
from cluster.errors import UserError
from serve.api import make_api
from serve.client import Client, ServiceError
from vaegan.registry import Registry
from vaegan.sampler import Sampler


class Flaky(httpx.BaseTransport):
    """Hands requests to an application, after failing as told: a status, or an exception."""

    def __init__(self, api, failures=()):
        self.api, self.failures, self.requests = api, list(failures), []

    def handle_request(self, request):
        self.requests.append(request)
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Exception):
                raise failure
            return failure
        inner = httpx.ASGITransport(self.api)

        async def send():
            copy = httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
            answer = await inner.handle_async_request(copy)
            return answer.status_code, answer.headers, await answer.aread()

        status, headers, body = asyncio.run(send())
        return httpx.Response(status, headers=headers, content=body)


@pytest.fixture
def waits(monkeypatch):
    """The waits of a client, which don't happen."""
    taken = []
    monkeypatch.setattr(serve.client.time, "sleep", taken.append)
    return taken


@pytest.fixture
def connect(catalog, config):
    def build(failures=(), **options):
        transport = Flaky(make_api(catalog, config), failures)
        return Client("http://service/", transport=transport, **options), transport

    return build


def test_a_large_order_comes_in_parts_and_equals_the_sampler_in_process(connect, registry):
    client, transport = connect(per_request=10)
    images = client.samples("chest", "effusion", count=25, seed=4, start=3)
    sampler = Sampler.from_model(Registry(registry).resolve("chest").path)
    expected = sampler.sample(sampler.labels_of(["effusion"], 25), 4, 3)
    assert len(transport.requests) == 3
    for name in ("pixels", "labels", "image_id", "patient_id", "source", "model", "seed", "index"):
        np.testing.assert_array_equal(getattr(images, name), getattr(expected, name))


def test_an_address_leads_to_its_image(connect):
    client, _ = connect()
    images = client.samples("findings", ["Büschel + Rest"], count=2, seed=1)
    np.testing.assert_array_equal(client.image("findings/1/Büschel + Rest/1/1"), images.pixels[1])
    mixed = client.samples("findings", ["Mass"], count=1, seed=1, latent="mixture", truncation=0.5)
    address = "findings/1/Mass/1/0?latent=mixture&truncation=0.5"
    np.testing.assert_array_equal(client.image(address), mixed.pixels[0])


def test_failures_that_pass_are_retried_and_change_nothing(connect, waits):
    failures = [
        httpx.ConnectError("refused"),
        httpx.Response(503, headers={"Retry-After": "7"}),
        httpx.Response(500, text="Internal Server Error"),
        httpx.Response(429, headers={"Retry-After": "1e9"}),
    ]
    client, transport = connect(failures)
    calm, _ = connect()
    images = client.samples("chest", "normal", count=3, seed=9)
    np.testing.assert_array_equal(images.pixels, calm.samples("chest", "normal", count=3, seed=9).pixels)
    assert len(transport.requests) == 5
    assert waits[1] == 7
    assert max(waits) <= serve.client.LONGEST_WAIT_S


def test_a_mistake_is_not_retried_and_is_told_in_the_services_words(connect, waits):
    client, transport = connect()
    with pytest.raises(ServiceError, match='"cat" is not a class of model chest/2') as caught:
        client.samples("chest", "cat", count=1, seed=0)
    assert caught.value.status == 422
    assert (len(transport.requests), waits) == (1, [])


def test_a_service_that_stays_away_is_given_up_on(connect, waits):
    client, transport = connect([httpx.ConnectError("refused")] * 9, retries=2)
    with pytest.raises(ServiceError, match="does not answer"):
        client.models()
    assert len(transport.requests) == 3


def test_something_that_is_not_this_service_is_said_so(connect):
    client, _ = connect([httpx.Response(404, text="<html>")])
    with pytest.raises(ServiceError, match="is it this service"):
        client.models()


def test_an_address_that_is_none_is_refused_before_it_is_sent(connect):
    client, transport = connect()
    with pytest.raises(UserError, match="expected NAME/VERSION/CLASSES/SEED/INDEX"):
        client.image("chest/normal")
    with pytest.raises(UserError, match="count is 0"):
        client.samples("chest", "normal", count=0, seed=1)
    assert not transport.requests


def test_the_key_travels_in_its_header(connect):
    client, transport = connect(api_key="secret-of-some-length")
    assert [m["name"] for m in client.models()] == ["chest", "chest", "findings", "plain"]
    assert transport.requests[0].headers["x-api-key"] == "secret-of-some-length"
