"""Models come, go, and change places while a service runs."""

import asyncio
import os
import runpy
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import UserError
from serve.access.keyfile import Keys
from serve.catalog import Catalog, RecentlyUsed
from serve.versions import main as versions
from vaegan.registry import Registry
from vaegan.sampler import Sampler

publish_untrained = runpy.run_path(str(Path(__file__).with_name("untrained.py")))["publish_untrained"]
BODY = {"model": "chest", "class": "normal"}
CLASSES = ("normal", "consolidation", "effusion")


@pytest.fixture
def root(registry, tmp_path) -> Path:
    """A registry of one's own: copied without their ages, which decide what is newest, versions would tie."""
    return shutil.copytree(registry, tmp_path / "registry")


@pytest.fixture
def running(service_of, root):
    return service_of(registry=root)


def refresh(service) -> None:
    asyncio.run(service.backend.catalog.refresh())


def version(service, **more) -> str:
    return service.post(BODY | more).headers["x-augray-version"]


def test_a_version_published_while_the_service_runs_becomes_current_and_the_old_one_still_answers(running, root):
    before = running.post(BODY | {"version": "2"}).content
    publish_untrained(root, "chest/3", CLASSES, seed=9)
    assert version(running) == "2"
    refresh(running)
    assert version(running) == "3"
    assert running.post(BODY | {"version": "2"}).content == before
    assert running.post(BODY).content != before


def test_going_back_to_a_version_and_forward_again_needs_no_restart(running, root, capsys):
    arguments = ["--registry", str(root), "--model", "chest"]
    assert versions([*arguments, "--use", "1"]) == 0
    assert "chest/1  not audited  (current)" in capsys.readouterr().out
    refresh(running)
    assert version(running) == "1"
    publish_untrained(root, "chest/3", CLASSES, seed=9)
    refresh(running)
    assert version(running) == "1"  # what was chosen holds, whatever is published
    assert versions([*arguments, "--newest"]) == 0
    refresh(running)
    assert version(running) == "3"


def test_the_registry_and_the_service_agree_on_what_is_current(root):
    registry = Registry(root)
    registry.choose("chest", "1")
    assert registry.resolve("chest").version == "1"
    registry.choose("chest", None)
    assert registry.resolve("chest").version == "2"


@pytest.mark.parametrize("content", ["9", "../plain/1", "", "\0"])
def test_a_choice_that_is_not_there_any_more_counts_as_none(running, root, content):
    (root / "chest" / "CURRENT").write_text(content)
    refresh(running)
    assert version(running) == Registry(root).resolve("chest").version == "2"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "lungs"], "no model lungs"),
        (["--model", "chest", "--use", "9"], "no model chest/9"),
        (["--model", "chest", "--use", "1", "--newest"], "both given"),
    ],
)
def test_a_choice_that_makes_no_sense_is_told_and_changes_nothing(root, capsys, arguments, words):
    assert versions(["--registry", str(root), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert Registry(root).chosen("chest") is None


def test_a_damaged_new_version_does_not_become_current(running, root, caplog):
    publish_untrained(root, "chest/3", CLASSES, seed=9)
    with open(root / "chest" / "3" / "model.safetensors", "r+b") as file:
        file.truncate(100)
    refresh(running)
    assert version(running) == "2"
    assert running.post(BODY | {"version": "3"}).status_code == 503
    assert "chest/3 is unavailable" in caplog.text


def test_a_version_that_is_taken_away_is_gone_and_the_one_before_is_current(running, root):
    shutil.rmtree(root / "chest" / "2")
    refresh(running)
    assert version(running) == "1"
    assert running.post(BODY | {"version": "2"}).status_code == 422


def test_a_registry_that_is_away_for_a_moment_changes_nothing(running, root):
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(UserError, match="no such folder"):
        refresh(running)
    assert version(running) == "2"
    root.with_name("elsewhere").rename(root)
    refresh(running)
    assert version(running) == "2"


def test_a_verdict_that_an_audit_writes_later_is_seen(running, root, write_verdict):
    write_verdict(root / "chest" / "2", {"verdict": "fail", "scopes": {"images": {"verdict": "fail"}}})
    assert running.post(BODY).status_code == 200
    refresh(running)
    assert running.post(BODY).status_code == 403


def test_no_more_models_are_in_memory_than_there_is_room_for_and_all_of_them_answer(service_of):
    service = service_of(max_models=2)
    catalog = service.backend.catalog
    first = {}
    for _ in range(3):
        for name, body in (("chest", BODY), ("findings", {"model": "findings"}), ("plain", {"model": "plain"})):
            answer = service.post(body)
            assert first.setdefault(name, answer.content) == answer.content
            assert len(catalog._load.kept) <= 2


def test_the_least_recently_used_model_makes_room():
    loads = []

    async def scenario() -> None:
        keep = RecentlyUsed(lambda id: loads.append(id) or id, 2)
        for id in ("a", "b", "a", "c", "a", "b"):
            assert await keep(id) == id

    asyncio.run(scenario())
    assert loads == ["a", "b", "c", "b"]


def test_many_requests_for_a_model_that_is_not_there_yet_load_it_once():
    loads = []

    def load(id: str) -> str:
        loads.append(id)
        time.sleep(0.02)
        return id

    async def scenario() -> None:
        keep = RecentlyUsed(load, 2)
        await asyncio.gather(*(keep("a") for _ in range(20)))

    asyncio.run(scenario())
    assert loads == ["a"]


def test_a_load_that_fails_is_tried_again_by_the_next_request():
    calls = []

    def load(id: str) -> str:
        calls.append(id)
        if len(calls) == 1:
            raise OSError("the disk is away")
        return id

    async def scenario() -> None:
        keep = RecentlyUsed(load, 2)
        with pytest.raises(OSError, match="away"):
            await keep("a")
        assert await keep("a") == "a"

    asyncio.run(scenario())


def test_the_folders_of_a_registry_are_read_again_only_when_they_change(root, monkeypatch):
    catalog = Catalog(root)
    catalog.look()
    read = []
    monkeypatch.setattr(Registry, "verify", lambda self, entry: read.append(entry.name))
    catalog.look()
    assert read == []
    os.utime(root / "plain" / "1" / "model.json")
    catalog.look()
    assert read == ["plain"]


def test_a_loaded_model_is_the_samplers_own(root):
    async def scenario() -> None:
        catalog = Catalog(root)
        await catalog.warm_up()
        model = await catalog.get(catalog.stock.find("chest", "1"))
        mine = Sampler.from_model(root / "chest" / "1")
        labels = mine.labels_of(["normal"], 3)
        np.testing.assert_array_equal(model.sampler.sample(labels, 5).pixels, mine.sample(labels, 5).pixels)

    asyncio.run(scenario())


def test_a_key_that_is_taken_out_of_the_file_is_refused_without_a_restart(service_of, tmp_path, make_key):
    file = tmp_path / "keys.toml"
    section = '[keys.{0}]\nsha256 = "{1}"\nimages_per_day = {2}\n'
    lab, ward = make_key("lab", "secret-of-the-lab"), make_key("ward", "secret-of-the-ward")
    file.write_text(section.format("lab", lab.sha256, 3) + section.format("ward", ward.sha256, 3))
    service = service_of(keys=(), api_keys=file)
    backend = service.backend
    backend.keys = Keys(())
    asyncio.run(backend._read_keys())

    def ask(secret: str) -> int:
        return service.get("/v1/models/chest/1/images/normal/1/0.png", headers={"X-API-Key": secret}).status_code

    assert [ask("secret-of-the-lab"), ask("secret-of-the-ward")] == [200, 200]
    file.write_text(section.format("lab", lab.sha256, 2))
    asyncio.run(backend._read_keys())
    assert ask("secret-of-the-ward") == 401
    assert ask("secret-of-the-lab") == 200
    assert ask("secret-of-the-lab") == 429  # the new limit, and what was taken before counts
