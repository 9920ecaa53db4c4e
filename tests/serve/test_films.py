"""Images that a client sends: encoded, reconstructed and scored as the model does in process, or refused."""

import io

import numpy as np
import pytest
from PIL import Image

from serve.access.keyfile import Limits
from vaegan.anomaly import anomaly
from vaegan.images import encode_png
from vaegan.registry import Registry
from vaegan.sampler import Sampler

PATHS = ("encode", "reconstruct", "anomaly")


@pytest.fixture
def sampler(registry):
    return Sampler.from_model(Registry(registry).resolve("chest", "2").path)


def test_encode_and_anomaly_give_the_models_own_numbers(service, sampler, film, film_pixels):
    labels = sampler.labels_of(["effusion"])
    mu, log_var = sampler.encode(film_pixels[None], labels)
    answer = service.upload("/v1/encode?model=chest&class=effusion", film).json()
    np.testing.assert_array_equal(np.float32(answer["mu"]), mu[0])
    np.testing.assert_array_equal(np.float32(answer["log_var"]), log_var[0])
    assert (answer["model"], answer["version"], answer["classes"]) == ("chest", "2", ["effusion"])
    scores = anomaly(sampler, film_pixels[None], labels)
    answer = service.upload("/v1/anomaly?model=chest&class=effusion", film).json()
    assert {name: answer[name] for name in scores} == {name: values[0] for name, values in scores.items()}


def test_a_reconstruction_is_a_png_that_says_it_is_synthetic(service, sampler, film, film_pixels):
    answer = service.upload("/v1/reconstruct?model=chest&version=2&class=normal", film)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.headers["x-augray-synthetic"] == "true"
    png = Image.open(io.BytesIO(answer.content))
    assert png.text["AugRay-Address"].startswith("chest/2/normal/reconstruction/")
    expected = sampler.reconstruct(film_pixels[None], sampler.labels_of(["normal"]))
    np.testing.assert_array_equal(np.asarray(png)[:, :, None], expected[0])


def test_the_classes_of_a_film_are_those_of_its_model(service, film):
    several = service.upload("/v1/encode?model=findings&class=Mass&class=Atelectasis", film)
    assert several.json()["classes"] == ["Mass", "Atelectasis"]
    assert service.upload("/v1/encode?model=plain", film).json()["classes"] == []
    for query in ("model=chest", "model=chest&class=cat", "model=plain&class=normal"):
        assert service.upload(f"/v1/encode?{query}", film).status_code == 422


@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_film_is_a_problem(service, film, path):
    url = f"/v1/{path}?model=chest&class=normal"
    grey = encode_png(np.full((40, 40, 1), 7, np.uint8))
    gif = io.BytesIO()
    Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(gif, format="GIF")
    for data, words in (
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "can't be used"),
        (film[: len(film) // 2], "can't be used"),
        (grey, "same value"),
        (gif.getvalue(), "not an image in a format"),  # Pillow reads it; strangers' bytes reach four decoders only
        (b"<svg/>", "not an image in a format"),
    ):
        answer = service.upload(url, data)
        assert answer.status_code == 422, data[:20]
        assert words in answer.json()["detail"]
    assert service.upload(url, film, "application/json").status_code == 415
    assert service.upload(url, film, "image/svg+xml").status_code == 415
    assert service.upload(f"/v1/{path}?class=normal", film).status_code == 422
    assert service.upload(f"/v1/{path}?model=nobody", film).status_code == 422


def test_a_film_of_too_many_bytes_or_pixels_is_refused_before_it_is_decoded(service_of, film):
    url = "/v1/reconstruct?model=chest&class=normal"
    answer = service_of(max_upload_bytes=1000).upload(url, film + b"\0" * 2000)
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    bomb = io.BytesIO()
    Image.new("L", (5000, 5000)).save(bomb, format="PNG")  # 25 million pixels in some 25 kB
    answer = service_of(max_upload_pixels=1_000_000).upload(url, bomb.getvalue())
    assert answer.status_code == 413
    assert "5000x5000 pixels" in answer.json()["detail"]


def test_films_need_a_key_that_may_send_them(service_of, make_key, film):
    url = "/v1/encode?model=chest&class=normal"
    keys = [make_key("only-images"), make_key("films", "another-secret", scopes=frozenset({"reconstruct"}))]
    service = service_of(keys=keys)
    assert service.upload(url, film).status_code == 401
    refused = service.upload(url, film, headers={"X-API-Key": "augray_a-key-for-tests-only"})
    assert refused.status_code == 403
    assert "may sample, expected one that may reconstruct" in refused.json()["detail"]
    assert service.upload(url, film, headers={"X-API-Key": "another-secret"}).status_code == 200
    for secret, serves in (("augray_a-key-for-tests-only", ["sample"]), ("another-secret", ["reconstruct"])):
        listed = service.get("/v1/models", headers={"X-API-Key": secret}).json()["models"]
        assert all(model["serves"] == serves for model in listed)


def test_colour_and_sixteen_bit_films_of_any_size_are_taken(service, film_pixels):
    wide = np.kron(film_pixels[:, :, 0], np.ones((3, 5), np.uint8))
    for image in (
        Image.fromarray(np.stack([wide] * 3, axis=2)),
        Image.fromarray(wide.astype(np.uint16) * 200),
    ):
        for format, media_type in (("PNG", "image/png"), ("TIFF", "image/tiff")):
            file = io.BytesIO()
            image.save(file, format=format)
            answer = service.upload("/v1/reconstruct?model=chest&class=normal", file.getvalue(), media_type)
            assert answer.status_code == 200, answer.text
            assert Image.open(io.BytesIO(answer.content)).size == (32, 32)


def test_an_upload_counts_against_the_quota_only_when_it_is_an_image(service_of, make_key, film):
    limits = Limits(images_per_day=2)
    service = service_of(keys=[make_key(scopes=frozenset({"reconstruct"}), limits=limits)])
    headers = {"X-API-Key": "augray_a-key-for-tests-only"}

    def send(data: bytes) -> int:
        return service.upload("/v1/encode?model=chest&class=normal", data, headers=headers).status_code

    assert [send(data) for data in (b"nothing", film, b"nothing", film, film)] == [422, 200, 422, 200, 429]
