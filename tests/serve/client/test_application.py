"""The client against the real application, in process."""

import asyncio

import httpx
import numpy as np
import pytest

from cluster.errors import UserError
from serve.api import make_api
from serve.client import Client, ServiceError
from vaegan.registry import Registry
from vaegan.sampler import Sampler


class InProcess(httpx.BaseTransport):
    """Hands requests to an application."""

    def __init__(self, api):
        self.api, self.requests = api, []

    def handle_request(self, request):
        self.requests.append(request)
        inner = httpx.ASGITransport(self.api)

        async def send():
            copy = httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
            answer = await inner.handle_async_request(copy)
            return answer.status_code, answer.headers, await answer.aread()

        status, headers, body = asyncio.run(send())
        return httpx.Response(status, headers=headers, content=body)


@pytest.fixture
def transport(service_of):
    return InProcess(make_api(service_of().backend))


@pytest.fixture
def sampler_of(registry):
    return lambda name: Sampler.from_model(Registry(registry).resolve(name).path)


@pytest.fixture
def client(transport):
    with Client("http://service/", transport=transport, per_request=10) as client:
        yield client


def test_a_large_order_comes_in_parts_and_equals_the_sampler_in_process(client, transport, sampler_of):
    images = client.samples("chest", "effusion", count=25, seed=4, start=3)
    sampler = sampler_of("chest")
    expected = sampler.sample(sampler.labels_of(["effusion"], 25), 4, 3)
    assert len(transport.requests) == 3
    for name in ("pixels", "labels", "image_id", "patient_id", "source", "model", "seed", "index"):
        np.testing.assert_array_equal(getattr(images, name), getattr(expected, name))


def test_an_address_leads_to_its_image(client):
    images = client.samples("findings", ["Büschel + Rest"], count=2, seed=1)
    np.testing.assert_array_equal(client.image("findings/1/Büschel + Rest/1/1"), images.pixels[1])
    mixed = client.samples("findings", ["Mass"], count=1, seed=1, latent="mixture", truncation=0.5)
    address = "findings/1/Mass/1/0?latent=mixture&truncation=0.5"
    np.testing.assert_array_equal(client.image(address), mixed.pixels[0])


def test_a_model_without_classes_and_one_of_several_at_once_come_through(client):
    assert client.samples("plain", count=2, seed=1).image_id[1] == "plain/1/none/1/1"
    assert client.samples("findings", ["Mass", "Atelectasis"], count=1, seed=1).image_id[0].split("/")[2] == (
        "Atelectasis+Mass"
    )


def test_a_long_stream_equals_the_sampler_in_process(transport, sampler_of):
    client = Client("http://service/", transport=transport)
    batches = list(client.stream("chest", "effusion", count=600, seed=4, batch_size=100))
    sampler = sampler_of("chest")
    assert len(transport.requests) == 1
    np.testing.assert_array_equal(
        np.concatenate([batch.pixels for batch in batches]),
        sampler.sample(sampler.labels_of(["effusion"], 600), 4).pixels,
    )


def test_what_a_model_says_of_a_film_equals_what_it_says_in_process(client, sampler_of, film, film_pixels):
    sampler = sampler_of("chest")
    labels = sampler.labels_of(["effusion"])
    mu, log_var = sampler.encode(film_pixels[None], labels)
    encoding = client.encode(film, "chest", "effusion")
    np.testing.assert_array_equal(encoding.mu, mu[0])
    np.testing.assert_array_equal(encoding.log_var, log_var[0])
    found = client.reconstruct(film, "chest", "effusion", version="2")
    np.testing.assert_array_equal(found, sampler.reconstruct(film_pixels[None], labels)[0])
    assert client.anomaly(film, "chest", "effusion")["kl"] > 0


def test_a_way_begins_and_ends_at_its_addresses(client):
    way = client.interpolate("chest", "effusion", from_seed=1, to_seed=2, to_index=3, steps=4)
    np.testing.assert_array_equal(way.pixels[0], client.image("chest/2/effusion/1/0"))
    np.testing.assert_array_equal(way.pixels[-1], client.image("chest/2/effusion/2/3"))
    np.testing.assert_array_equal(way.pixels[1], client.image(way.image_id[1]))


def test_a_mistake_is_not_retried_and_is_told_in_the_services_words(client, transport):
    with pytest.raises(ServiceError, match='"cat" is not a class of model chest/2') as caught:
        client.samples("chest", "cat", count=1, seed=0)
    assert caught.value.status == 422
    assert len(transport.requests) == 1


def test_an_address_that_is_none_is_refused_before_it_is_sent(client, transport):
    with pytest.raises(UserError, match="expected NAME/VERSION/CLASSES/SEED/INDEX"):
        client.image("chest/normal")
    assert not transport.requests


def test_models_are_those_of_the_registry(client):
    assert [m["name"] for m in client.models()] == ["chest", "chest", "findings", "plain"]
