from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vaegan.preparation.pipeline import prepare
from vaegan.preparation.summary import summary


@pytest.fixture
def leaky(tmp_path, films, save):
    for i, film in enumerate(films):
        save(tmp_path / "in" / ("test" if i >= 60 else "train") / "AB"[i % 2] / f"p{i}-0.png", film)
    save(tmp_path / "in/train/A/p60-another.png", films[0][::-1])
    save(tmp_path / "in/train/A/p100-exact.png", films[61])
    for i in range(7):
        (tmp_path / f"in/train/A/p{i}-broken.png").write_bytes(b"x" * i)
    return tmp_path / "in"


def test_counts_add_up_line_by_line(leaky, config):
    manifest = prepare(config(leaky))
    text = summary(manifest, Path("out"))
    head, *rows = (line.split() for line in text.splitlines()[1:5])
    assert head == ["images", "A", "B", "patients"]
    for (split, info), row in zip(manifest.splits.items(), rows, strict=False):
        assert row == [split, *map(str, (info.num_images, *info.per_class.values(), info.num_patients))]
        assert info.num_images == sum(info.per_class.values())


def test_leaks_copies_and_rejects_are_told_by_name_and_number(leaky, config):
    manifest = prepare(config(leaky))
    text = summary(manifest, Path("out"))
    assert "2 images leak between splits (removed):" in text
    assert "p60-another in train: same patient as p60-0 in test" in text
    assert "p100-exact in train: exact copy of p61-0 in test" in text
    copies = manifest.report["duplicates"]
    assert copies["exact_copies"] == 1
    assert "1 exact" in text
    assert (
        "7 images could not be used (rejects.parquet): 6 not an image in a format that can be read; 1 the file is empty"
        in text
    )
    assert "python -m vaegan.inspect out" in text


def test_kept_leaks_are_called_what_they_are(leaky, config):
    assert "KEPT as asked: scores on this dataset will flatter" in summary(
        prepare(config(leaky, leaks="keep")), Path("out")
    )


def test_a_clean_set_says_so_and_many_classes_stand_below_each_other(folder, config):
    manifest = prepare(config(folder))
    text = summary(manifest, Path("out"))
    assert "No patient and no copy of an image is in two splits." in text
    assert "Every image could be read." in text
    assert "vaegan.inspect" not in text
    many = replace(
        manifest,
        classes=tuple("abcdefg"),
        splits={k: replace(v, per_class=dict.fromkeys("abcdefg", 1)) for k, v in manifest.splits.items()},
    )
    assert [line.split()[0] for line in summary(many, Path("out")).splitlines()[2:11]] == [
        "images",
        *"abcdefg",
        "patients",
    ]


def test_more_reasons_than_are_named_still_add_up(folder, config):
    manifest = prepare(config(folder))
    reasons = {f"reason {i}": 10 - i for i in range(8)}
    report = manifest.report | {"rejects": reasons, "left_out": {"a lateral view": 3}}
    text = summary(replace(manifest, rejects=sum(reasons.values()), report=report), Path("out"))
    assert f"{sum(reasons.values())} images could not be used" in text
    assert f"{np.sum(list(reasons.values())[5:])} for other reasons" in text
    assert "3 images were left out: 3 a lateral view." in text
