import dataclasses
import io
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from serve import formats
from serve.batching import BATCH
from vaegan.registry import Registry
from vaegan.sample import SampleConfig, synthesize
from vaegan.sampler import Sampler
from vaegan.shards import from_table, read_split

NPZ, PARQUET, ZIP = "application/x-npz", "application/vnd.apache.parquet", "application/zip"
ARROW = "application/vnd.apache.arrow.stream"


def png_pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))[:, :, None]


@pytest.fixture
def sampler(registry):
    return Sampler.from_model(Registry(registry).resolve("chest", "2").path)


def expected(sampler, classes, count, seed, start=0, **options):
    return sampler.sample(sampler.labels_of(classes, count), seed, start, **options)


@pytest.mark.parametrize("accept", [ZIP, NPZ, PARQUET, ARROW])
def test_every_format_holds_the_images_that_the_sampler_makes_in_process(service, sampler, accept):
    count = 10 * BATCH + 3  # more than one forward pass, and more than one row group
    body = {"model": "chest", "class": "effusion", "count": count, "seed": 11, "start": 5}
    answer = service.post(body, accept)
    assert (answer.status_code, answer.headers["content-type"]) == (200, accept)
    images = expected(sampler, ["effusion"], count, 11, 5)
    if accept in (PARQUET, ARROW):
        stream = io.BytesIO(answer.content)
        found = from_table(pq.read_table(stream) if accept == PARQUET else pa.ipc.open_stream(stream).read_all())
        assert list(found.image_id) == list(images.image_id)
        assert set(found.source) == {"synthetic"}
        np.testing.assert_array_equal(found.labels, images.labels)
        pixels = found.pixels
    elif accept == NPZ:
        arrays = np.load(io.BytesIO(answer.content), allow_pickle=False)
        assert list(arrays["address"]) == list(images.image_id)
        assert list(arrays["classes"]) == list(sampler.info.classes)
        np.testing.assert_array_equal(arrays["index"], np.arange(5, 5 + count))
        pixels = arrays["pixels"]
    else:
        archive = zipfile.ZipFile(io.BytesIO(answer.content))
        pixels = np.stack([png_pixels(archive.read(name)) for name in archive.namelist() if name.endswith(".png")])
        assert archive.read("images.csv").decode().splitlines()[1].endswith("chest/2/effusion/11/5,synthetic")
    np.testing.assert_array_equal(pixels, images.pixels)


def test_one_image_is_a_png_that_says_it_is_synthetic_and_where_it_comes_from(service, sampler):
    answer = service.post({"model": "chest", "class": "normal", "seed": 3})
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-augray-synthetic"] == "true"
    assert answer.headers["x-augray-address"] == "chest/2/normal/3/0"
    png = Image.open(io.BytesIO(answer.content))
    assert png.text["AugRay-Address"] == "chest/2/normal/3/0"
    assert png.text["AugRay-Synthetic"] == "true"
    np.testing.assert_array_equal(png_pixels(answer.content), expected(sampler, ["normal"], 1, 3).pixels[0])


def test_an_address_is_the_same_bytes_alone_in_a_large_request_and_as_a_url(service):
    body = {"model": "chest", "class": "normal", "seed": 8}
    alone = service.post(body | {"start": 40}).content
    archive = zipfile.ZipFile(io.BytesIO(service.post(body | {"count": 64}, ZIP).content))
    together = archive.read(next(name for name in archive.namelist() if name.startswith("000040")))
    assert alone == together == service.get("/v1/models/chest/2/images/normal/8/40.png").content


@pytest.mark.parametrize("accept", [ZIP, NPZ, PARQUET, ARROW])
def test_the_same_request_gives_the_same_bytes(service, accept):
    body = {"model": "findings", "labels": ["Mass"], "count": 3, "seed": 1}
    assert service.post(body, accept).content == service.post(body, accept).content


def test_latents_and_truncation_reach_the_sampler_and_enter_the_address(service, sampler):
    answer = service.get("/v1/models/chest/2/images/normal/1/0.png?latent=mixture&truncation=0.5")
    assert answer.headers["x-augray-address"] == "chest/2/normal/1/0?latent=mixture&truncation=0.5"
    images = expected(sampler, ["normal"], 1, 1, latent="mixture", truncation=0.5)
    np.testing.assert_array_equal(png_pixels(answer.content), images.pixels[0])
    plain = service.get("/v1/models/chest/2/images/normal/1/0.png")
    assert plain.headers["etag"] != answer.headers["etag"]


def test_a_request_without_a_version_gets_the_newest_and_is_told_which(service):
    assert service.post({"model": "chest", "class": "normal"}).headers["x-augray-version"] == "2"
    assert service.post({"model": "chest", "version": "1", "class": "normal"}).headers["x-augray-version"] == "1"


def test_an_unconditional_model_and_several_findings_have_addresses(service):
    assert service.post({"model": "plain", "seed": 2}).headers["x-augray-address"] == "plain/1/none/2/0"
    assert service.get("/v1/models/plain/1/images/none/2/0.png").status_code == 200
    both = service.post({"model": "findings", "labels": ["Mass", "Atelectasis"]})
    assert both.headers["x-augray-address"] == "findings/1/Atelectasis+Mass/0/0"
    assert service.get("/v1/models/findings/1/images/Mass+Atelectasis/0/0.png").content == both.content
    assert service.get("/v1/models/findings/1/images/none/0/0.png").status_code == 200


def test_a_class_name_with_a_plus_spaces_and_an_umlaut_survives_url_header_and_archive(service):
    url = "/v1/models/findings/1/images/B%C3%BCschel%20+%20Rest/0/0.png"
    answer = service.get(url)
    assert answer.status_code == 200
    assert answer.headers["x-augray-address"] == "findings/1/B%C3%BCschel%20+%20Rest/0/0"
    packed = service.post({"model": "findings", "class": "Büschel + Rest", "count": 2}, ZIP).content
    names = zipfile.ZipFile(io.BytesIO(packed)).namelist()
    assert all("/" not in name and name.isascii() for name in names)


def test_every_combination_of_classes_has_an_address_that_leads_back_to_it(service):
    names = ["Atelectasis", "Mass", "Büschel + Rest"]
    for chosen in [names[:2], names[1:], names[::2], names]:
        answer = service.post({"model": "findings", "labels": chosen})
        classes = answer.headers["x-augray-address"].split("/")[2]
        assert service.get(f"/v1/models/findings/1/images/{classes}/0/0.png").content == answer.content


def test_the_largest_seed_and_index_work_and_the_next_is_refused(service):
    top = 2**63 - 1
    body = {"model": "chest", "class": "normal", "seed": top, "start": top - 1, "count": 2}
    assert service.post(body, NPZ).status_code == 200
    assert service.post(body | {"count": 3}, NPZ).status_code == 422
    assert service.get(f"/v1/models/chest/2/images/normal/{top}/{top}.png").status_code == 200
    assert service.get(f"/v1/models/chest/2/images/normal/{top + 1}/0.png").status_code == 422


def test_an_address_may_be_cached_for_ever_and_is_revalidated_without_being_made(service):
    url = "/v1/models/chest/2/images/normal/1/0.png"
    first = service.get(url)
    assert first.headers["cache-control"] == "public, max-age=31536000, immutable"
    etag = first.headers["etag"]
    for sent in (etag, etag.removeprefix("W/"), f'"other", {etag}', "*"):
        again = service.get(url, headers={"If-None-Match": sent})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert service.get(url, headers={"If-None-Match": '"other"'}).status_code == 200
    others = ["chest/1/images/normal/1/0", "chest/2/images/effusion/1/0", "chest/2/images/normal/2/0"]
    assert len({etag, *(service.get(f"/v1/models/{o}.png").headers["etag"] for o in others)}) == 4


def test_head_has_the_headers_of_get(service):
    url = "/v1/models/chest/2/images/normal/1/0.png"
    head, get = service.request("HEAD", url), service.get(url)
    assert (head.status_code, head.headers["etag"]) == (200, get.headers["etag"])
    assert head.headers["content-length"] == get.headers["content-length"]


def test_several_images_as_one_png_are_refused_with_the_alternatives(service):
    answer = service.post({"model": "chest", "class": "normal", "count": 2}, "image/png")
    assert answer.status_code == 406
    assert ZIP in answer.json()["detail"]


def test_openapi_examples_run_and_all_paths_are_described(service):
    document = service.get("/openapi.json").json()
    assert {"/v1/samples", "/v1/models", "/healthz", "/readyz"} <= set(document["paths"])
    content = document["paths"]["/v1/samples"]["post"]["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        assert service.post(example["value"]).status_code == 200
    assert set(document["paths"]["/v1/samples"]["post"]["responses"]["200"]["content"]) == {
        f.media_type for f in formats.FORMATS
    }


def test_the_service_and_the_sampling_command_write_the_same_rows(service, registry, tmp_path):
    config = SampleConfig(
        model=registry / "chest" / "2", out=tmp_path / "out", count=40, classes=("effusion",), seed=11
    )
    synthesize(config)
    shards = read_split(tmp_path / "out", "train")
    body = {"model": "chest", "class": "effusion", "count": 40, "seed": 11}
    rows = from_table(pq.read_table(io.BytesIO(service.post(body, PARQUET).content)))
    for field in dataclasses.fields(rows):
        np.testing.assert_array_equal(getattr(rows, field.name), getattr(shards, field.name), err_msg=field.name)
