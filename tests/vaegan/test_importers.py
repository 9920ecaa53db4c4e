import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import UserError
from vaegan.images import encode_png
from vaegan.importers import ImportConfig, detect
from vaegan.importers.folder import open_folder


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (40, 40, 1), dtype=np.uint8)


def tree(root, names):
    """Small PNG files at these paths."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(i)[..., 0]).save(root / name, format="PNG")
    return root


def listed(source):
    return [(r.split, r.labels, r.patient_id, r.image_id) for r in source.records()]


def test_a_folder_per_class_gives_its_files_at_any_depth_but_no_hidden_ones(tmp_path):
    tree(tmp_path, ["B/x.png", "A/deep/er/y.png", "A/.hidden.png", ".git/z.png", "__MACOSX/A/y.png"])
    source = open_folder(ImportConfig(images=tmp_path))
    assert source.classes == ("A", "B")
    assert listed(source) == [(None, ("A",), None, "y"), (None, ("B",), None, "x")]
    assert source.num_records == 2
    assert any("patient of its own" in note for note in source.notes)


@pytest.mark.parametrize("names", ["train val test", "Training valid testing", "train validation TEST"])
def test_splits_above_the_classes_are_known_by_their_usual_names(tmp_path, names):
    tree(tmp_path, [f"{name}/{label}/{name}{label}.png" for name in names.split() for label in "AB"])
    source = open_folder(ImportConfig(images=tmp_path))
    assert sorted({r.split for r in source.records()}) == ["test", "train", "val"]
    assert source.classes == ("A", "B")


def test_stems_that_repeat_become_paths_so_that_image_ids_stay_unique(tmp_path):
    tree(tmp_path, ["A/1.png", "B/1.png", "B/2.png"])
    assert [r.image_id for r in open_folder(ImportConfig(images=tmp_path)).records()] == ["A/1", "B/1", "2"]


def test_kermany_names_give_the_patients(tmp_path):
    names = {
        "train/PNEUMONIA/person1_bacteria_1.jpeg": "person1_bacteria",
        "train/PNEUMONIA/person1_virus_6.jpeg": "person1_virus",
        "train/NORMAL/NORMAL2-IM-1427-0001.jpeg": "NORMAL2-IM-1427",
        "train/NORMAL/IM-0115-0001-0002.jpeg": "IM-0115",
    }
    source = open_folder(ImportConfig(images=tree(tmp_path, names), patient_regex="kermany"))
    assert {r.name: r.patient_id for r in source.records()} == names


def test_a_pattern_without_groups_or_without_a_match(tmp_path):
    tree(tmp_path, ["A/p7_1.png", "A/p7_2.png", "B/other.png"])
    source = open_folder(ImportConfig(images=tmp_path, patient_regex=r"p\d+"))
    assert [r.patient_id for r in source.records()] == ["p7", "p7", None]
    assert any("no patient in 1 of 3" in note for note in source.notes)


def test_the_hash_of_a_folder_follows_content_and_names_not_place_or_time(tmp_path):
    first, moved, changed = (tree(tmp_path / name, ["A/1.png", "B/2.png"]) for name in ("a", "b", "c"))
    (changed / "B/2.png").write_bytes(encode_png(image(9)))
    inputs = [open_folder(ImportConfig(images=root)).inputs for root in (first, moved, changed)]
    assert inputs[0] == inputs[1] != inputs[2]


@pytest.mark.parametrize(
    ("names", "regex", "says"),
    [
        (["A/notes.txt"], None, r"no images in the subfolders.*1 \.txt"),
        (["train/A/1.png", "other/A/2.png"], None, "holds train/ beside other/"),
        (["chest_xray/train/A/1.png"], None, "use --images .*chest_xray"),
        (["A/1.png"], "(", "isn't a regular expression"),
    ],
)
def test_odd_folders_are_refused_with_what_was_found(tmp_path, names, regex, says):
    with pytest.raises(UserError, match=says):
        open_folder(ImportConfig(images=tree(tmp_path, names), patient_regex=regex))


def test_detection_of_formats(tmp_path):
    tree(tmp_path, ["folder/A/1.png"])
    write(tmp_path / "parquet" / "a.parquet", {"image": [b""], "label": ["A"]})
    (tmp_path / "odd.zip").write_bytes(b"PK")
    assert detect(None) == "phantom"
    assert detect(tmp_path / "folder") == "folder"
    assert detect(tmp_path / "parquet") == detect(tmp_path / "parquet" / "a.parquet") == "parquet"
    with pytest.raises(UserError, match=r"unknown format \(\.zip\)"):
        detect(tmp_path / "odd.zip")
    with pytest.raises(UserError, match="no folder or file"):
        detect(tmp_path / "absent")


def write(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path
