from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.errors import UserError
from cluster.storage import file_sha256, read_json, write_json
from vaegan.checkpoint import bests, checkpoints, read_info, read_model
from vaegan.export import ExportConfig, completed_labels, export_checkpoint, fit_sources, labelled_for
from vaegan.latents import LatentsConfig, uniforms
from vaegan.loop import train_loop
from vaegan.registry import Registry, publish
from vaegan.sample import SampleConfig, synthesize
from vaegan.sampler import MAX_CANDIDATES, Sampler
from vaegan.shards import read_manifest, read_split


@pytest.fixture
def model(config):
    return train_loop(config)


@pytest.fixture
def sampler(model):
    return Sampler.from_model(model)


@pytest.mark.parametrize("latent", ["prior", "mixture", "gaussian"])
def test_the_same_address_gives_the_same_bytes_alone_in_a_batch_and_after_a_restart(sampler, model, latent):
    labels = np.eye(2, dtype=np.uint8)[np.arange(150) % 2]
    index = np.arange(150) * 7
    together = sampler(labels, 5, index, latent=latent)
    alone = np.concatenate([sampler(labels[i : i + 1], 5, index[i : i + 1], latent=latent) for i in range(0, 150, 13)])
    again = Sampler.from_model(model)(labels[::-1], 5, index[::-1], latent=latent)[::-1]
    assert np.array_equal(alone, together[::13])
    assert np.array_equal(again, together)


def test_seed_index_label_and_truncation_each_change_the_image(sampler):
    left, right = sampler.labels_of(["left"]), sampler.labels_of(["right"])
    base = sampler(left, 1, np.array([1]))
    others = [
        sampler(left, 2, np.array([1])),
        sampler(left, 1, np.array([2])),
        sampler(right, 1, np.array([1])),
        sampler(left, 1, np.array([1]), truncation=0.5),
        sampler(left, 1, np.array([1]), latent="mixture"),
    ]
    assert all(not np.array_equal(base, other) for other in others)


def test_an_address_names_whatever_changes_the_image(sampler):
    labels = sampler.labels_of(["right"])[0]
    assert sampler.address(labels, 4, 9) == "model/1/right/4/9"
    assert sampler.address(labels, 4, 9, "mixture", 0.7) == "model/1/right/4/9?latent=mixture&truncation=0.7"
    between = sampler.address(labels, 4, 9, "mixture", 0.7, to=(5, 2), at=0.25)
    assert between == "model/1/right/4/9?latent=mixture&truncation=0.7&to=5/2&at=0.25"
    assert sampler.address(labels, 4, 9, to=(5, 2), at=-0.0) == "model/1/right/4/9?to=5/2&at=0.0"


@pytest.mark.parametrize(
    ("names", "message"),
    [(["up"], "no class 'up' in model model/1: it knows left, right"), (["left", "right"], "expected exactly one of")],
)
def test_classes_that_make_no_sense_are_refused(sampler, names, message):
    with pytest.raises(UserError, match=message):
        sampler.labels_of(names)


@pytest.mark.parametrize("settings", [{"latent": "posterior"}, {"truncation": float("nan")}, {"truncation": -1.0}])
def test_settings_out_of_range_are_refused(sampler, settings):
    with pytest.raises(UserError):
        sampler(sampler.labels_of(["left"]), 0, np.array([0]), **settings)


@pytest.mark.parametrize("latent", ["prior", "mixture"])
def test_the_way_between_two_addresses_starts_and_ends_with_their_own_images(sampler, latent):
    labels = sampler.labels_of(["left"])[0]
    settings = {"latent": latent, "truncation": 0.8}
    way = sampler.interpolate(labels, 3, 1, (4, 7), np.linspace(0, 1, 9), **settings)
    ends = sampler(np.tile(labels, (2, 1)), np.array([3, 4]), np.array([1, 7]), **settings)
    assert np.array_equal(way.pixels[[0, -1]], ends)
    assert len(np.unique(way.pixels, axis=0)) == 9
    back = sampler.interpolate(labels, 4, 7, (3, 1), np.linspace(0, 1, 9), **settings)
    assert np.abs(back.pixels[::-1].astype(int) - way.pixels).max() <= 1


def test_a_point_on_the_way_is_the_same_bytes_alone_and_in_a_batch(sampler):
    labels, at = sampler.labels_of(["right"])[0], np.linspace(0, 1, 150)
    together = sampler.interpolate(labels, 0, 0, (0, 1), at)
    for i in range(0, 150, 13):
        alone = sampler.interpolate(labels, 0, 0, (0, 1), at[i : i + 1])
        assert np.array_equal(alone.pixels[0], together.pixels[i])
        assert alone.image_id[0] == together.image_id[i]


def test_rows_on_the_way_are_nobodys_and_carry_an_address_each(sampler):
    rows = sampler.interpolate(sampler.labels_of(["right"])[0], 3, 1, (4, 7), np.array([0, 0.1]), latent="mixture")
    assert list(rows.image_id) == [f"model/1/right/3/1?latent=mixture&to=4/7&at={at}" for at in ("0.0", "0.1")]
    assert list(rows.patient_id) == list(rows.image_id)
    assert (set(rows.source), set(rows.model)) == ({"synthetic"}, {"model/1"})
    assert (set(rows.seed), set(rows.index)) == ({3}, {1})
    assert np.array_equal(rows.labels, sampler.labels_of(["right"], 2))


@pytest.mark.parametrize("at", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_point_beyond_the_ends_of_the_way_is_refused(sampler, at):
    with pytest.raises(UserError, match="expected a fraction from 0 to 1"):
        sampler.interpolate(sampler.labels_of(["left"])[0], 0, 0, (1, 0), np.array([0.5, at]))


def test_one_candidate_is_the_image_itself_and_is_not_named_in_the_address(sampler):
    labels, index = sampler.labels_of(["left"], 20), np.arange(20)
    assert np.array_equal(sampler(labels, 3, index, candidates=1), sampler(labels, 3, index))
    assert sampler.address(labels[0], 3, 0, candidates=1) == sampler.address(labels[0], 3, 0) == "model/1/left/3/0"
    rows = sampler.sample(labels[:2], 3, latent="mixture", candidates=4)
    assert list(rows.image_id) == [f"model/1/left/3/{i}?latent=mixture&candidates=4" for i in (0, 1)]


def opinionated(sampler):
    """Give it a discriminator of strong opinions: that of six steps finds all images much alike."""
    with torch.no_grad():
        sampler.networks.discriminator.dense.weight *= 30


@pytest.mark.parametrize("latent", ["prior", "gaussian"])
def test_candidates_make_the_chain_that_they_are_said_to_make(sampler, latent):
    opinionated(sampler)
    labels, index, seed = np.eye(2, dtype=np.uint8)[np.arange(40) % 2], np.arange(40), 3
    found = sampler(labels, seed, index, latent=latent, candidates=5)
    stays = 0
    for i in range(40):
        row, at = labels[i : i + 1], index[i : i + 1]
        image = sampler.decode(sampler.latents(row, seed, at, latent), row)
        logit = sampler.judge(image, row)[0]
        for j in range(1, 5):
            other = sampler.decode(sampler.latents(row, seed, at, latent, candidate=j), row)
            theirs = sampler.judge(other, row)[0]
            if uniforms(seed, at, 1, stream=2 * j + 1)[0, 0] < np.exp(theirs - logit):
                image, logit = other, theirs
        assert np.array_equal(found[i], image[0])
        stays += np.array_equal(image, sampler(row, seed, at, latent=latent))
    assert 0 < stays < 40


def test_candidates_are_judged_better_and_remain_as_many_different_images(sampler):
    opinionated(sampler)
    labels, index = sampler.labels_of(["left"], 60), np.arange(60)
    before, after = sampler(labels, 0, index), sampler(labels, 0, index, candidates=8)
    assert sampler.judge(after, labels).mean() > sampler.judge(before, labels).mean()
    assert len(np.unique(after, axis=0)) == len(np.unique(before, axis=0)) == 60


def test_a_chosen_image_and_its_logit_are_the_same_alone_and_in_a_batch(sampler):
    labels, index = np.eye(2, dtype=np.uint8)[np.arange(100) % 2], np.arange(100) * 5
    together = sampler(labels, 5, index, candidates=3)
    logits = sampler.judge(together, labels)
    for size in (1, 13, 64):
        rows = slice(20, 20 + size)
        assert np.array_equal(sampler(labels[rows], 5, index[rows], candidates=3), together[rows])
        assert np.array_equal(sampler.judge(together[rows], labels[rows]), logits[rows])


@pytest.mark.parametrize("candidates", [0, -1, MAX_CANDIDATES + 1])
def test_a_number_of_candidates_out_of_range_is_refused(sampler, candidates):
    with pytest.raises(UserError, match="expected 1 to 64"):
        sampler(sampler.labels_of(["left"]), 0, np.array([0]), candidates=candidates)


def test_without_a_discriminator_nothing_can_be_chosen_and_nothing_is_written(config, tmp_path):
    model = train_loop(replace(config, model=replace(config.model, kind="vae")))
    with pytest.raises(UserError, match="is a vae and has no discriminator"):
        synthesize(SampleConfig(model=model, out=tmp_path / "synthetic", count=2, candidates=2))
    assert not (tmp_path / "synthetic").exists()


def test_sources_are_those_that_the_recipe_or_an_export_asks_for(config, tmp_path):
    config = replace(config, latents=LatentsConfig(sources=("gaussian",)))
    model = train_loop(config)
    assert read_info(model).latents == ("prior", "gaussian")
    (_, checkpoint) = checkpoints(config.run_dir)
    export_checkpoint(
        ExportConfig(checkpoint=checkpoint, out=tmp_path / "again", latents=("mixture", "full_mixture", "flow"))
    )
    sampler = Sampler.from_model(tmp_path / "again")
    assert sampler.info.latents == ("prior", "mixture", "full_mixture", "flow")
    images = read_split(config.data, "train")
    again = fit_sources(sampler, images, images.labels, LatentsConfig(sources=("flow",)))
    labels, index = sampler.labels_of(["right"], 9), np.arange(9)
    fitted = sampler.with_sources(again)
    assert fitted.info.latents == ("prior", "flow")
    assert np.array_equal(fitted(labels, 0, index, latent="flow"), sampler(labels, 0, index, latent="flow"))
    with pytest.raises(UserError, match="it has prior, flow"):
        fitted(labels, 0, index, latent="mixture")


def test_a_run_and_a_model_of_an_earlier_version_know_the_mixture_alone(config, tmp_path):
    model = train_loop(config)
    tensors, about = load_file(model / "model.safetensors"), read_json(model / "model.json")
    kept = {name: value for name, value in tensors.items() if not name.startswith("gaussian.")}
    assert len(kept) < len(tensors)
    save_file(kept, model / "model.safetensors")
    digest = file_sha256(model / "model.safetensors")
    write_json(model / "model.json", about | {"latents": ["prior", "mixture"], "tensors_sha256": digest})
    old = Sampler.from_model(model)
    assert old(old.labels_of(["left"]), 0, np.array([0]), latent="mixture").shape == (1, 32, 32, 1)
    with pytest.raises(UserError, match="it has prior, mixture"):
        old(old.labels_of(["left"]), 0, np.array([0]), latent="gaussian")
    run = read_json(config.run_dir / "config.json")
    del run["config"]["latents"]
    write_json(config.run_dir / "config.json", run)
    export_checkpoint(ExportConfig(checkpoint=checkpoints(config.run_dir)[-1], out=tmp_path / "again"))
    assert read_info(tmp_path / "again").latents == ("prior", "mixture", "gaussian")


def test_a_gan_has_no_mixture_and_says_so(config):
    sampler = Sampler.from_model(train_loop(replace(config, model=replace(config.model, kind="gan"))))
    with pytest.raises(UserError, match="it has prior"):
        sampler(sampler.labels_of(["left"]), 0, np.array([0]), latent="mixture")
    with pytest.raises(UserError, match="has no encoder"):
        sampler.reconstruct(np.zeros((1, 32, 32, 1), np.uint8), sampler.labels_of(["left"]))


def test_an_unconditional_model_samples_without_classes(config, tmp_path):
    model = train_loop(replace(config, model=replace(config.model, conditional=False)))
    manifest = synthesize(SampleConfig(model=model, out=tmp_path / "synthetic", count=5))
    images = read_split(tmp_path / "synthetic", "train")
    assert manifest.classes == ()
    assert images.labels.shape == (5, 0)
    assert images.image_id[3] == "model/1/none/0/3"


def test_a_synthetic_dataset_holds_exactly_the_images_of_its_addresses(sampler, model, tmp_path):
    config = SampleConfig(model=model, out=tmp_path / "synthetic", count=70, seed=9, start=5, latent="mixture")
    manifest = synthesize(config)
    images = read_split(config.out, "train")
    assert manifest.splits["train"].per_class == {"left": 70, "right": 70}
    assert set(images.source) == {"synthetic"}
    assert set(images.model) == {"model/1"}
    rows = np.array([0, 69, 70, 139])
    assert np.array_equal(
        images.pixels[rows], sampler(images.labels[rows], images.seed[rows], images.index[rows], latent="mixture")
    )
    assert images.image_id[70] == "model/1/right/9/5?latent=mixture"
    assert len(set(images.image_id)) == 140


def test_sampling_twice_writes_once_and_another_request_is_refused(model, tmp_path):
    config = SampleConfig(model=model, out=tmp_path / "synthetic", count=3)
    synthesize(config)
    before = (config.out / "manifest.json").stat().st_mtime_ns
    synthesize(config)
    assert (config.out / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds another dataset"):
        synthesize(replace(config, seed=1))


def test_reconstruction_comes_from_the_posterior_mean(sampler, config):
    images = read_split(config.data, "test")
    mu, log_var = sampler.encode(images.pixels, images.labels)
    assert mu.shape == log_var.shape == (8, 6)
    assert np.array_equal(sampler.reconstruct(images.pixels, images.labels), sampler.decode(mu, images.labels))


def test_a_reconstruction_is_the_same_bytes_alone_and_in_a_batch(sampler, config):
    images = read_split(config.data, "train")
    mu, log_var = sampler.encode(images.pixels, images.labels)
    for rows in (slice(0, 1), slice(5, 8), slice(3, 43)):
        alone = sampler.encode(images.pixels[rows], images.labels[rows])
        assert np.array_equal(alone[0], mu[rows])
        assert np.array_equal(alone[1], log_var[rows])


@pytest.mark.parametrize("damage", ["cut", "changed", "absent", "pickle"])
def test_a_damaged_model_is_refused_in_one_sentence(model, damage):
    tensors = model / "model.safetensors"
    content = tensors.read_bytes()
    if damage == "absent":
        tensors.unlink()
    else:
        tensors.write_bytes({"cut": content[:1000], "changed": content[:-1] + b"\x7f", "pickle": b"\x80\x04."}[damage])
    with pytest.raises(UserError) as error:
        read_model(model)
    assert "\n" not in str(error.value)


def test_networks_that_do_not_fit_the_description_are_refused(model):
    about = read_json(model / "model.json")
    write_json(model / "model.json", about | {"networks": about["networks"] | {"width": 8}})
    with pytest.raises(UserError, match="doesn't fit"):
        read_model(model)


def test_any_checkpoint_can_be_exported_and_the_runs_own_model_is_the_best_of_them(config, model, tmp_path):
    end = Sampler.from_model(model)
    (best,) = (folder for folder in bests(config.run_dir) if folder.name.endswith(f"{end.info.images_seen:09d}"))
    export_checkpoint(ExportConfig(checkpoint=best, out=tmp_path / "best"))
    other = next(folder for folder in checkpoints(config.run_dir) if folder.name[-9:] != best.name[-9:])
    export_checkpoint(ExportConfig(checkpoint=other, out=tmp_path / "other"))
    again, another = (Sampler.from_model(tmp_path / name) for name in ("best", "other"))
    labels, index = end.labels_of(["left"], 4), np.arange(4)
    assert np.array_equal(again(labels, 0, index), end(labels, 0, index))
    assert not np.array_equal(another(labels, 0, index), end(labels, 0, index))
    assert another.info.images_seen == int(other.name[-9:])


def test_a_checkpoint_that_is_none_is_refused(config, tmp_path):
    with pytest.raises(UserError, match="isn't a checkpoint"):
        export_checkpoint(ExportConfig(checkpoint=tmp_path, out=tmp_path / "m"))


def test_a_registry_finds_the_newest_version_and_checks_its_sums(model, tmp_path):
    root = tmp_path / "registry"
    publish(model, root, "chest/1")
    publish(model, root, "chest/2")
    registry = Registry(root)
    assert [entry.version for entry in registry.models()] == ["1", "2"]
    entry = registry.resolve("chest")
    assert entry.version == "2"
    registry.verify(entry)
    assert Sampler.from_model(entry.path).info.address_prefix == "chest/2"
    (entry.path / "card.md").write_text("changed")
    with pytest.raises(UserError, match=r"card\.md differ"):
        registry.verify(entry)


def test_a_published_version_never_changes(model, config, tmp_path):
    first = publish(model, tmp_path / "registry", "chest/1")
    assert publish(model, tmp_path / "registry", "chest/1") == first
    other = train_loop(replace(config, seed=4, run_dir=tmp_path / "other"))
    with pytest.raises(UserError, match="choose another version"):
        publish(other, tmp_path / "registry", "chest/1")


@pytest.mark.parametrize("address", ["chest", "../chest/1", "chest/..", "a b/1", "chest/1/2"])
def test_addresses_that_could_leave_the_registry_are_refused(model, tmp_path, address):
    with pytest.raises(UserError, match="expected NAME/VERSION"):
        publish(model, tmp_path / "registry", address)


def test_an_unknown_model_is_told_what_there_is(model, tmp_path):
    publish(model, tmp_path / "registry", "chest/1")
    with pytest.raises(UserError, match="no model chest/7 in the registry: it has chest/1"):
        Registry(tmp_path / "registry").resolve("chest", "7")


def test_a_model_without_a_label_head_predicts_no_labels(sampler, config):
    with pytest.raises(UserError, match="has no label head"):
        sampler.predicted_labels(read_split(config.data, "val").pixels)


def test_sources_of_images_without_labels_are_fitted_to_what_the_head_takes_them_for_from_any_checkpoint(
    config, tmp_path
):
    config = replace(config, labelled_fraction=0.25, model=replace(config.model, label_head=True))
    model = train_loop(config)
    best = bests(config.run_dir)[-1]
    export_checkpoint(ExportConfig(checkpoint=best, out=tmp_path / "again"))
    assert file_sha256(tmp_path / "again" / "model.safetensors") == file_sha256(model / "model.safetensors")
    sampler, images = Sampler.from_model(model), read_split(config.data, "train")
    images = labelled_for(config, images, read_manifest(config.data))
    labels = completed_labels(sampler, images)
    assert np.array_equal(labels[images.has_label], images.labels[images.has_label])
    assert (labels.sum(axis=1) == 1).all()
    fitted = fit_sources(sampler, images, labels, LatentsConfig())["mixture"].tensors()
    stored = sampler.sources["mixture"].tensors()
    assert all(np.array_equal(fitted[name], stored[name]) for name in stored)
