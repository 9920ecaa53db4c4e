"""Who a patient is stays out of the dataset, and out of what a killed run leaves."""

import csv
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from cluster.errors import UserError
from vaegan.importers.base import ColumnsConfig
from vaegan.preparation.identity import Pseudonyms, read_or_make_salt, write_linkage
from vaegan.preparation.pipeline import prepare
from vaegan.preparation.spool import decode_part
from vaegan.shards import read_manifest, read_split

SECRETS = ["Mustermann", "Musterfrau", "Beispiel", "St-Elsewhere", "Nr9999"]
"""Pieces of names, of which each file below has one; none is made of hexadecimal digits alone, as a hash is."""


class Killed(BaseException):
    pass


def text_of(table):
    """All that stands in strings and bytes of an Arrow table, and in its metadata."""
    found = [str(table.schema.metadata)]
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in ("image", "thumbnail", "other_thumbnail", "labels", "pixel_hash", "file_sha256"):
            continue
        found.append(f"{name} {column.to_pylist()}")
    return "\n".join(found)


def content(folder):
    """All that can be read below a folder: raw bytes, what is compressed in tables, names of files, metadata."""
    found = []
    for where, _, names in os.walk(folder):
        for path in (os.path.join(where, name) for name in names):
            found += [os.path.relpath(path, folder), Path(path).read_bytes().decode("latin-1")]
            if path.endswith(".parquet"):
                found += [text_of(pq.read_table(path)), str(pq.read_metadata(path).metadata)]
            if path.endswith((".arrow", ".rest")):
                with pa.memory_map(path) as file:
                    found.append(text_of(pa.ipc.open_file(file).read_all()))
    return "\n".join(found)


def told(text):
    """Which secrets are in a text."""
    return [secret for secret in SECRETS if secret in text]


def where(text):
    """What stands around the first secret, for the message."""
    at = min(text.find(secret) for secret in told(text))
    return text[max(0, at - 150) : at + 80]


@pytest.fixture
def named(tmp_path, films, save):
    """Files that are called after patients: good ones, copies, leaks, broken ones, odd ones, and folders too."""
    root = tmp_path / "Mustermann-clinic" / "in"
    for i, film in enumerate(films[:40]):
        split = "train" if i < 30 else "test"
        save(root / split / "AB"[i % 2] / "St-Elsewhere" / f"Mustermann{i // 2}-{i}.png", film)
    save(root / "train/A/Musterfrau7-copy.png", films[35])
    save(root / "train/B/Mustermann16-leak.png", films[50])
    save(root / "train/A/Beispiel.png", films[0])
    (root / "train/A/Mustermann-Nr9999-broken.png").write_bytes(b"rubbish")
    (root / "train/B/Musterfrau-Nr9999-empty.png").write_bytes(b"")
    (root / "train/B/Musterfrau-Nr9999.xyz").write_bytes(b"no image")
    return root


def table_of(root):
    """The same as a table of paths, in which much is wrong."""
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    file = root / "Musterfrau.csv"
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["path", "label", "patient_id", "hospital", "remark"])
        for path in files:
            writer.writerow(
                [
                    path,
                    path.split("/")[1],
                    path.split("/")[-1].split("-")[0],
                    f"St-Elsewhere-{sum(map(ord, path.split('/')[-1].split('-')[0])) % 7}",
                    "",
                ]
            )
        writer.writerow([files[0], "A", "Beispiel", "", ""])  # twice
        writer.writerow(["films/Mustermann-Nr9999.png", "A", "Mustermann-Nr9999", "", ""])  # not there
        writer.writerow(["too", "many", "fields", "of", "Mustermann", "Nr9999"])
        writer.writerow(["", "A", "Mustermann", "", ""])
    return file


def settings_of(kind, named, config, **more):
    if kind == "folder":
        return config(named, patient_regex=r"(Muster\w+?\d+)-", **more)
    return config(table_of(named), patient_regex=None, columns=ColumnsConfig(group="hospital"), **more)


HIDING = ["hash_patients", "salt", "linkage"]


def hiding(how, tmp_path):
    private = tmp_path / "private"
    settings = {"hash_patients": True, "salt": private / "salt", "linkage": private / "l.csv"}
    return {how: settings[how]}


def test_the_search_for_names_finds_them_where_they_are_not_hidden(named, config):
    prepare(settings_of("folder", named, config))
    assert set(told(content(config(named).out))) == set(SECRETS) - {"St-Elsewhere"}  # a folder below the class


@pytest.mark.parametrize("kind", ["folder", "table"])
@pytest.mark.parametrize("how", HIDING)
def test_no_name_no_path_and_no_patient_is_in_the_dataset(named, config, tmp_path, kind, how):
    settings = settings_of(kind, named, config, **hiding(how, tmp_path))
    manifest = prepare(settings)
    assert manifest.rejects >= 2
    assert manifest.report["leaks"]["images"] >= (kind == "folder")
    assert told(content(settings.out)) == [], where(content(settings.out))
    assert str(tmp_path) not in content(settings.out)
    ids = [
        n
        for s in manifest.splits
        for n in (*read_split(settings.out, s).image_id, *read_split(settings.out, s).patient_id)
    ]
    assert all(re.fullmatch("[0-9a-f]{16}", name) for name in ids)
    assert sorted(path.name for path in settings.out.parent.iterdir()) == ["data"]


@pytest.mark.parametrize("kind", ["folder", "table"])
@pytest.mark.parametrize("how", ["hash_patients", "salt"])
def test_nor_is_it_in_what_a_killed_run_leaves(named, config, tmp_path, kind, how):
    settings = settings_of(kind, named, config, **hiding(how, tmp_path))

    def run(parts, how):
        for part in parts:
            yield decode_part(part.records, how, part.path)
        raise Killed

    with pytest.raises(Killed):
        prepare(settings, run)
    work = settings.out.with_name(".data.work")
    assert list(work.glob("part-*.arrow"))
    assert told(content(work)) == [], where(content(work))
    if how == "salt":
        salt = settings.salt.read_text().strip()
        assert salt not in content(settings.out.parent)
    else:
        assert (work / "salt").stat().st_mode & 0o777 == 0o600


def test_what_a_killed_run_with_a_linkage_leaves_is_for_its_owner_alone(named, config, tmp_path):
    """It must hold the names until it is done."""
    settings = settings_of("folder", named, config, **hiding("linkage", tmp_path))

    def run(parts, how):
        yield from (decode_part(part.records, how, part.path) for part in parts)
        raise Killed

    with pytest.raises(Killed):
        prepare(settings, run)
    assert settings.out.with_name(".data.work").stat().st_mode & 0o077 == 0


def patients_by_film(dataset):
    found = {}
    for split in read_manifest(dataset).splits:
        images = read_split(dataset, split)
        found |= {
            p.tobytes(): (i, w) for p, i, w in zip(images.pixels, images.image_id, images.patient_id, strict=True)
        }
    return found


def test_the_same_salt_calls_the_same_patient_the_same_in_two_datasets_and_no_salt_never_does(named, config, tmp_path):
    base, salt = settings_of("folder", named, config), tmp_path / "private" / "salt"
    outs = {}
    for name, how in {"a": {"salt": salt}, "b": {"salt": salt, "seed": 3}, "c": {"hash_patients": True}}.items():
        outs[name] = base.out.with_name(name)
        prepare(replace(base, out=outs[name], **how))
    a, b, c = (patients_by_film(outs[name]) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert not {name for pair in a.values() for name in pair} & {name for pair in c.values() for name in pair}
    assert salt.stat().st_mode & 0o777 == 0o600
    text = salt.read_text().strip()
    assert len(bytes.fromhex(text)) == 32
    assert text not in content(base.out.parent)


def test_the_linkage_is_complete_and_right_and_for_its_owner_alone(named, config, tmp_path):
    settings = settings_of("folder", named, config, linkage=tmp_path / "private" / "l.csv")
    manifest = prepare(settings)
    file = settings.linkage
    assert file.stat().st_mode & 0o777 == 0o600
    with file.open(newline="") as opened:
        rows = {row["image_id"]: row for row in csv.DictReader(opened)}
    total = sum(i.num_images for i in manifest.splits.values()) + manifest.rejects + manifest.report["leaks"]["images"]
    assert len(rows) == total == 45
    for split in manifest.splits:
        images = read_split(settings.out, split)
        for image_id, patient in zip(images.image_id, images.patient_id, strict=True):
            row = rows[image_id]
            assert row["patient_id"] == patient
            assert (named / row["source"]).is_file()
            match = re.search(r"(Muster\w+?\d+)-", row["source"])
            assert row["source_patient_id"] == (match[1] if match else row["source"].split("/")[-1][:-4])
    rejects = pq.read_table(settings.out / "rejects.parquet")["path"].to_pylist()
    assert sorted(rows[name]["source"].split("-Nr9999")[1] for name in rejects) == ["-broken.png", "-empty.png"]


def test_a_linkage_that_is_asked_for_when_a_killed_run_goes_on_is_complete(named, config, tmp_path):
    settings = settings_of("folder", named, config, salt=tmp_path / "private" / "salt")

    def run(parts, how):
        yield from (decode_part(part.records, how, part.path) for part in parts)
        raise Killed

    with pytest.raises(Killed):
        prepare(settings, run)
    prepare(replace(settings, linkage=tmp_path / "private" / "l.csv"))
    with (tmp_path / "private" / "l.csv").open(newline="") as opened:
        assert all(row["source"] for row in csv.DictReader(opened))


@pytest.mark.parametrize("name", ["linkage", "salt"])
def test_what_undoes_the_hashing_is_refused_inside_the_dataset(named, config, name):
    settings = settings_of("folder", named, config)
    with pytest.raises(UserError, match=f"{name}"):
        prepare(replace(settings, **{name: settings.out / "secret"}))
    assert not settings.out.exists()


def test_who_belongs_together_still_does(named, config):
    open_, hidden = settings_of("folder", named, config), settings_of("folder", named, config, hash_patients=True)
    prepare(open_)
    prepare(hidden := replace(hidden, out=hidden.out.with_name("hidden")))
    pairs = [
        (a[1], b[1]) for film, a in patients_by_film(open_.out).items() for b in [patients_by_film(hidden.out)[film]]
    ]
    assert len(set(pairs)) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    a, b = (read_manifest(s.out) for s in (open_, hidden))
    assert {s: (i.num_images, i.num_patients) for s, i in a.splits.items()} == {
        s: (i.num_images, i.num_patients) for s, i in b.splits.items()
    }


def test_pseudonyms_are_keyed_hashes_and_names_without_a_salt():
    salt = bytes(range(32))
    assert Pseudonyms(None)("Mustermann") == "Mustermann"
    # printf Mustermann | openssl dgst -sha256 -mac HMAC -macopt hexkey:000102...1f
    assert Pseudonyms(salt)("Mustermann") == "dad3bf4dd817d0c9"
    assert Pseudonyms(salt)("Mustermann") != Pseudonyms(bytes(32))("Mustermann")
    assert Pseudonyms(salt)("a\udcff") != Pseudonyms(salt)("a")
    names = [Pseudonyms(salt)(f"p{i}") for i in range(10_000)]
    assert len(set(names)) == 10_000


@pytest.mark.parametrize("text", ["", "secret", "00" * 31, "zz" * 32, "é" * 64])
def test_a_file_that_is_no_salt_is_refused_and_left_alone(tmp_path, text):
    (tmp_path / "salt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="isn't a salt"):
        read_or_make_salt(tmp_path / "salt")
    assert (tmp_path / "salt").read_text(encoding="utf-8") == text


def test_a_salt_is_made_once_and_a_linkage_replaces_one_in_one_step(tmp_path):
    salt = read_or_make_salt(tmp_path / "deep" / "salt")
    assert read_or_make_salt(tmp_path / "deep" / "salt") == salt != read_or_make_salt(None)
    assert len(salt) == 32
    write_linkage(tmp_path / "l.csv", [("a", "b", 'c,"d"', "é\n")])
    with (tmp_path / "l.csv").open(newline="", encoding="utf-8") as opened:
        assert list(csv.reader(opened))[1] == ["a", "b", 'c,"d"', "é\n"]

    def rows():
        yield ("x", "y", "z", "w")
        raise Killed

    with pytest.raises(Killed):
        write_linkage(tmp_path / "l.csv", rows())
    assert "é" in (tmp_path / "l.csv").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["l.csv"]


def test_notes_about_names_name_nobody(named, config):
    """A pattern that misses some files says which one was first, and warnings give examples."""
    settings = settings_of("folder", named, config, hash_patients=True)
    report = json.dumps(prepare(settings).report)
    assert told(report) == []
    assert np.all([secret not in report for secret in ("Mustermann", "Musterfrau")])
