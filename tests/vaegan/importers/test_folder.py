import os
import shutil

import numpy as np
import pytest
from PIL import Image

from cluster.errors import UserError
from vaegan.images import encode_png
from vaegan.importers import ImportConfig, open_source
from vaegan.importers.folder import files_below, open_folder


def image(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (40, 40, 1), dtype=np.uint8)


def tree(root, names):
    """Small PNG files at these paths."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(i)[..., 0]).save(root / name, format="PNG")
    return root


def opened(root, **settings):
    return open_folder(ImportConfig(images=root, **settings))


def listed(source):
    return [(r.split, r.labels, r.patient_id, r.image_id) for r in source.records()]


def test_a_folder_per_class_gives_its_files_at_any_depth_but_no_hidden_ones(tmp_path):
    tree(tmp_path, ["B/x.png", "A/deep/er/y.png", "A/.hidden.png", ".git/z.png", "__MACOSX/A/y.png"])
    source = opened(tmp_path)
    assert source.classes == ("A", "B")
    assert listed(source) == [(None, ("A",), None, "y"), (None, ("B",), None, "x")]
    assert source.num_records == 2
    assert any("patient of its own" in note for note in source.notes)


@pytest.mark.parametrize("names", ["train val test", "Training valid testing", "train validation TEST"])
def test_splits_above_the_classes_are_known_by_their_usual_names(tmp_path, names):
    tree(tmp_path, [f"{name}/{label}/{name}{label}.png" for name in names.split() for label in "AB"])
    source = opened(tmp_path)
    assert sorted({r.split for r in source.records()}) == ["test", "train", "val"]
    assert source.classes == ("A", "B")


def test_stems_that_repeat_become_paths_so_that_image_ids_stay_unique(tmp_path):
    tree(tmp_path, ["A/1.png", "B/1.png", "B/2.png"])
    assert [r.image_id for r in opened(tmp_path).records()] == ["A/1.png", "B/1.png", "2"]


def test_names_that_differ_only_in_their_suffix_are_told_apart(tmp_path):
    ids = [r.image_id for r in opened(tree(tmp_path, ["A/1.png", "A/1.jpg", "B/2.png"])).records()]
    assert len(set(ids)) == 3


KERMANY = {
    "train/PNEUMONIA/person1_bacteria_1.jpeg": "person1_bacteria",
    "train/PNEUMONIA/person1_virus_6.jpeg": "person1_virus",
    "train/NORMAL/NORMAL2-IM-1427-0001.jpeg": "NORMAL2-IM-1427",
    "train/NORMAL/IM-0115-0001-0002.jpeg": "IM-0115",
}


@pytest.mark.parametrize("regex", ["kermany", None])
def test_kermany_names_give_the_patients_whether_they_are_asked_for_or_recognised(tmp_path, regex):
    source = opened(tree(tmp_path, KERMANY), patient_regex=regex)
    assert {r.name: r.patient_id for r in source.records()} == KERMANY


def test_a_pattern_without_groups_or_without_a_match(tmp_path):
    source = opened(tree(tmp_path, ["A/p7_1.png", "A/p7_2.png", "B/other.png"]), patient_regex=r"p\d+")
    assert [r.patient_id for r in source.records()] == ["p7", "p7", None]
    assert any("no patient in 1 of 3" in note for note in source.notes)


@pytest.mark.parametrize("regex", ["", "(a)?", "x*", "(?:)", "p()"])
def test_a_pattern_that_matches_nothing_at_all_makes_nobody_the_patient_of_all_images(tmp_path, regex):
    source = opened(tree(tmp_path, ["A/p7_1.png", "A/p8_2.png", "B/p9.png"]), patient_regex=regex)
    assert len({r.patient_id or r.image_id for r in source.records()}) in (1, 3)
    assert "" not in {r.patient_id for r in source.records()}


def test_the_fingerprint_follows_names_sizes_and_times_and_not_the_place(tmp_path):
    names = ["A/1.png", "B/2.png"]
    first = tree(tmp_path / "a", names)
    shutil.copytree(first, tmp_path / "moved")  # with its times
    prints = [opened(root).fingerprint for root in (first, first, tmp_path / "moved")]
    assert prints[0] == prints[1] == prints[2]
    (tmp_path / "moved/B/2.png").write_bytes(encode_png(image(9)) + b" ")
    assert opened(tmp_path / "moved").fingerprint != prints[0]
    os.utime(first / "A/1.png", (5, 5))
    assert opened(first).fingerprint != prints[0]


@pytest.mark.parametrize(("before", "after"), [("A/1.png", "B/1.png"), ("train/A/1.png", "test/A/1.png")])
def test_the_fingerprint_and_the_inputs_follow_a_file_from_class_to_class_and_from_split_to_split(
    tmp_path, before, after
):
    other = "train/B/2.png" if "train" in before else "B/2.png"
    tree(tmp_path, [before, other])
    one = opened(tmp_path)
    (tmp_path / after).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / before).rename(tmp_path / after)
    two = opened(tmp_path)
    assert one.fingerprint != two.fingerprint
    assert one.inputs != two.inputs


@pytest.mark.parametrize(
    ("names", "regex", "says"),
    [
        (["A/notes.txt"], None, r"no images in the subfolders.*1 \.txt"),
        (["train/A/1.png", "other/A/2.png"], None, "holds train/ beside other/"),
        (["chest_xray/train/A/1.png"], None, "use --images .*chest_xray"),
        (["A/1.png"], "(", "isn't a regular expression"),
        ([os.fsdecode(b"\xff/1.png"), "B/1.png"], None, r"\\xff in .* isn't UTF-8 text"),
    ],
)
def test_odd_folders_are_refused_with_what_was_found(tmp_path, names, regex, says):
    with pytest.raises(UserError, match=says):
        opened(tree(tmp_path, names), patient_regex=regex)


def test_links_are_followed_and_those_that_lead_nowhere_or_to_themselves_do_no_harm(tmp_path):
    tree(tmp_path / "films", ["1.png", "2.png"])
    root = tmp_path / "in"
    tree(root, ["B/3.png"])
    (root / "A").symlink_to(tmp_path / "films")
    (root / "loop").symlink_to("loop")
    (root / "gone").symlink_to("nowhere")
    (root / "B" / "gone.png").symlink_to("nowhere.png")
    (root / "B" / "up").symlink_to("..")  # a folder that holds itself is not walked into
    source = opened(root)
    assert source.classes == ("A", "B")
    assert [r.name for r in source.records()] == ["A/1.png", "A/2.png", "B/3.png", "B/gone.png"]


def test_as_many_records_as_promised_in_the_same_order_each_time(tmp_path):
    source = opened(tree(tmp_path, [f"{'AB'[i % 2]}/{i}.png" for i in range(20)]))
    assert [r.name for r in source.records()] == [r.name for r in source.records()]
    assert len(list(source.records())) == source.num_records == 20


def test_files_below_leaves_hidden_ones_out_and_is_sorted(tmp_path):
    tree(tmp_path, ["b/2.png", "b/.x/1.png", "a.png", "b/10.png", ".y.png"])
    assert files_below(tmp_path) == ["a.png", "b/10.png", "b/2.png"]


def test_a_folder_of_unlabelled_images_may_lie_beside_the_splits_and_no_other_may(tmp_path):
    tree(tmp_path, ["train/A/1.png", "test/B/2.png", "unknown/3.png"])
    with pytest.raises(UserError, match="name it with --unlabelled"):
        opened(tmp_path)
    source = open_source(ImportConfig(images=tmp_path, unlabelled=("unknown",)), "folder")
    assert source.classes == ("A", "B")
    assert [(r.split, r.labels, r.problem) for r in source.records()] == [
        ("test", ("B",), None), ("train", ("A",), None), (None, None, None),
    ]  # fmt: skip


def test_a_class_that_is_none_leaves_its_images_without_a_label_in_their_splits(tmp_path):
    tree(tmp_path, ["train/A/1.png", "train/todo/2.png", "test/B/3.png"])
    source = open_source(ImportConfig(images=tmp_path, unlabelled=("todo",)), "folder")
    assert source.classes == ("A", "B")
    assert {r.image_id: (r.split, r.labels) for r in source.records()}["2"] == ("train", None)
    with pytest.raises(UserError, match=r"--unlabelled is 'other', .* has no such class or folder: found A, B, todo"):
        open_source(ImportConfig(images=tmp_path, unlabelled=("other",)), "folder")
    with pytest.raises(UserError, match="names all classes"):
        open_source(ImportConfig(images=tmp_path, unlabelled=("A", "B", "todo")), "folder")
