"""A dataset doesn't depend on who decodes it, nor on how often that was interrupted."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import UserError
from cluster.storage import file_sha256
from vaegan.importers.base import ColumnsConfig
from vaegan.preparation.pipeline import prepare
from vaegan.preparation.spool import decode_part, records_per_part
from vaegan.shards import FINDINGS, REJECTS, read_manifest, read_split

PARTS = -(-1301 // records_per_part(8, 1))  # of the fixture `many` at 8 px


class Killed(BaseException):
    """What SIGKILL would be, were it an exception: nothing here handles it."""


def hashes(dataset):
    """Of all that a dataset holds but for its manifest, which has a time in it."""
    return {path.name: file_sha256(path) for path in dataset.iterdir() if path.name != "manifest.json"}


def beside(config):
    return sorted(path.name for path in config.out.parent.iterdir())


def counting(decoded, stop_after=None):
    """A pool that notes how many records it decodes, and is killed after so many parts."""

    def run(parts, how):
        for part in parts:
            if len(decoded) == stop_after:
                raise Killed
            decoded.append(len(part.records))
            yield decode_part(part.records, how, part.path)

    return run


def interrupted(config, parts):
    with pytest.raises(Killed):
        prepare(config, counting([], stop_after=parts))


@pytest.fixture(scope="module")
def undisturbed(many, tmp_path_factory):
    """Hashes of what one thread makes of `many`, in one go."""
    from vaegan.preparation.config import PrepareConfig

    out = tmp_path_factory.mktemp("undisturbed") / "data"
    manifest = prepare(PrepareConfig(images=many, out=out, size=8, patient_regex=r"p(\d+)-", num_workers=1))
    assert sum(info.num_images for info in manifest.splits.values()) == 1300
    return hashes(out)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_threads_and_processes_write_the_same_bytes(many, config, undisturbed, num_workers):
    from vaegan.preparation.pools import _in_processes

    run = _in_processes(num_workers) if num_workers else None
    prepare(config(many, size=8), run)
    assert hashes(config(many).out) == undisturbed
    assert beside(config(many)) == ["data"]


@pytest.mark.parametrize("stops", [[0], [1], [PARTS - 1], [1, 2, 3], [0, 2]])
def test_interrupted_anywhere_and_gone_on_with_the_bytes_are_the_same_and_no_part_is_decoded_twice(
    many, config, undisturbed, stops
):
    settings = config(many, size=8)
    decoded = []
    for stop in stops:
        with pytest.raises(Killed):
            prepare(settings, counting(decoded, stop_after=stop))
        assert not settings.out.exists()
    prepare(settings, counting(decoded))
    assert hashes(settings.out) == undisturbed
    assert len(decoded) == PARTS
    assert sum(decoded) == 1301
    assert beside(settings) == ["data"]


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 9},
        {"seed": 1},
        {"channels": 3},
        {"aspect": "pad"},
        {"subset": 0.5},
        {"rename": ("A=C",)},
        {"patient_regex": None},
        {"hash_patients": True},
        {"split": "make"},
    ],
)
def test_parts_of_other_settings_are_thrown_away(many, config, changes):
    interrupted(config(many, size=8), 2)
    decoded = []
    prepare(config(many, **{"size": 8} | changes), counting(decoded))
    assert len(decoded) == PARTS


def test_parts_of_other_images_are_thrown_away(folder, config):
    first = config(folder)
    with pytest.raises(Killed):
        prepare(replace(first, size=200), _then_killed)
    (folder / "A" / "p0-0.png").write_bytes((folder / "B" / "p0-1.png").read_bytes())
    decoded = []
    prepare(replace(first, size=200), counting(decoded))
    assert sum(decoded) == 80


def _then_killed(parts, how):
    """All parts, but the end."""
    for part in parts:
        yield decode_part(part.records, how, part.path)
    raise Killed


def test_parts_whose_names_another_salt_hashed_are_thrown_away(many, config, tmp_path):
    one, other = (config(many, size=8, salt=tmp_path / name) for name in ("salt1", "salt2"))
    interrupted(one, 2)
    decoded = []
    prepare(other, counting(decoded))
    assert len(decoded) == PARTS
    ids = {name for split in read_manifest(other.out).splits for name in read_split(other.out, split).patient_id}
    assert len(ids) == 325


def test_a_part_cut_short_never_has_a_parts_name(many, config, monkeypatch):
    """The disk is full in the middle of the second part."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    settings, decoded = config(many, size=32), []
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))  # a part at 32 px has more
    try:
        with pytest.raises(OSError, match=r"File too large|too large"):
            prepare(settings, counting(decoded))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    work = settings.out.with_name(".data.work")
    assert not list(work.glob("part-*.arrow"))
    assert not settings.out.exists()
    prepare(settings, counting(decoded := []))
    assert len(decoded) == PARTS
    assert beside(settings) == ["data"]


def command(settings, *more):
    return [
        sys.executable, "-m", "vaegan.prepare", "--images", str(settings.images), "--out", str(settings.out), "--size",
        str(settings.size), "--patient-regex", r"p(\d+)-", *more,
    ]  # fmt: skip


def start(settings, *more):
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        command(settings, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("sign", "num_workers"), [("stamp.json", 1), ("part-000000.arrow", 1), ("part-000001.arrow", 2), ("thumbnails", 1)]
)
def test_a_command_that_sigkill_ends_goes_on_to_the_same_bytes(many, config, undisturbed, sign, num_workers):
    settings = config(many, size=8)
    work = settings.out.with_name(".data.work")
    process = start(settings, "--num-workers", str(num_workers))
    wait_for((work / sign).exists, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not settings.out.exists()
    there = len(list(work.glob("part-*.arrow")))
    decoded = []
    prepare(settings, counting(decoded))
    assert len(decoded) == PARTS - there
    assert hashes(settings.out) == undisturbed
    assert beside(settings) == ["data"]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_ctrl_c_ends_with_130_without_a_traceback_and_what_is_decoded_stays(many, config, num_workers):
    settings = config(many, size=8)
    work = settings.out.with_name(".data.work")
    process = start(settings, "--num-workers", str(num_workers))
    wait_for((work / "part-000001.arrow").exists, process)  # all workers are up
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "Traceback" not in err
    assert err.rstrip().endswith("interrupted")
    assert beside(settings) == [".data.work"]
    there = len(list(work.glob("part-*.arrow")))
    prepare(settings, counting(decoded := []))
    assert len(decoded) == PARTS - there < PARTS


def test_a_full_disk_is_one_sentence_and_status_2_with_nothing_under_the_final_name(many, config):
    settings = config(many, size=32)
    settings.out.parent.mkdir(parents=True)
    done = subprocess.run(
        command(settings, "--num-workers", "1"),
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr
    assert "free space" in done.stderr
    assert not settings.out.exists()
    assert not settings.out.with_name(".data.partial").exists()


def test_a_second_command_on_the_same_folder_is_refused_while_the_first_goes_on(folder, config):
    settings = config(folder)
    said = []

    def run(parts, how):
        with pytest.raises(UserError, match=r"another process prepares .*data: wait for it") as refused:
            prepare(settings)
        said.append(str(refused.value))
        yield from counting([])(parts, how)

    prepare(settings, run)
    assert len(said) == 1
    assert beside(settings) == ["data"]


def test_what_is_at_the_place_of_the_dataset_stays_untouched(folder, config):
    settings = config(folder)
    settings.out.mkdir(parents=True)
    (settings.out / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists already"):
        prepare(settings)
    assert (settings.out / "thesis.txt").read_text() == "years of work"
    assert beside(settings) == ["data"]
    (settings.out / "thesis.txt").unlink()
    prepare(settings)  # an empty folder is no obstacle
    shutil.rmtree(settings.out)
    settings.out.write_text("a file")
    with pytest.raises(UserError, match="exists already"):
        prepare(settings)
    assert settings.out.read_text() == "a file"


def test_files_that_were_touched_or_moved_as_a_whole_are_the_same(folder, config, tmp_path):
    prepare(config(folder))
    before = (config(folder).out / "manifest.json").read_bytes()
    for path in folder.rglob("*.png"):
        os.utime(path, (1, 1))
    prepare(config(folder))
    shutil.copytree(folder, tmp_path / "elsewhere")
    prepare(config(tmp_path / "elsewhere"))
    assert (config(folder).out / "manifest.json").read_bytes() == before


def invert(folder):
    path = folder / "A" / "p0-0.png"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


CHANGES = {
    "a pixel": invert,
    "a file less": lambda folder: (folder / "A" / "p0-0.png").unlink(),
    "a file more": lambda folder: shutil.copy(folder / "A" / "p0-0.png", folder / "A" / "p99-99.png"),
    "another label": lambda folder: (folder / "B" / "p19-79.png").rename(folder / "A" / "p9-99.png"),
    "another label, order and times kept": lambda folder: (folder / "A" / "p9-38.png").rename(
        folder / "B" / "p0-0.png"
    ),
    "another name, and so another patient": lambda folder: (folder / "A" / "p9-38.png").rename(
        folder / "A" / "p99-8.png"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_images_labels_or_names_are_refused(folder, config, change):
    prepare(config(folder))
    CHANGES[change](folder)
    with pytest.raises(UserError, match="prepared from other images"):
        prepare(config(folder))


@pytest.mark.parametrize("hash_patients", [False, True])
def test_a_label_that_was_corrected_by_moving_a_file_is_never_overlooked(config, films, save, tmp_path, hash_patients):
    """Names, sizes, times and order of the files are the same before and after."""
    root = tmp_path / "in"
    for i, film in enumerate(films[:40]):
        save(root / ("A" if i < 20 else "B") / f"p{i:02d}-{i:02d}.png", film)
    settings = config(root, hash_patients=hash_patients)
    prepare(settings)
    (root / "A" / "p19-19.png").rename(root / "B" / "p19-19.png")
    with pytest.raises(UserError, match="prepared from other images"):
        prepare(settings)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"size": 16}, "size"),
        ({"classes": ("B", "A")}, "classes"),
        ({"fractions": (0.5, 0.25, 0.25)}, "fractions"),
        ({"hash_patients": True}, "hash_patients"),
        ({"leaks": "keep", "val": "carve"}, "val, leaks"),
        ({"columns": ColumnsConfig(group="x")}, "columns"),
    ],
)
def test_other_settings_are_refused_by_name(folder, config, changes, named):
    prepare(config(folder))
    with pytest.raises(UserError, match=rf"other settings \({named}\)"):
        prepare(config(folder, **changes))


def test_how_it_is_decoded_is_no_other_setting(folder, config):
    prepare(config(folder))
    prepare(config(folder, num_workers=1, ray=True, strict=True))


def test_another_salt_is_another_setting_and_a_list_that_was_not_asked_for_in_time_is_not_promised(
    folder, config, tmp_path
):
    prepare(config(folder, salt=tmp_path / "salt1"))
    prepare(config(folder, salt=tmp_path / "salt1"))
    with pytest.raises(UserError, match="salt"):
        prepare(config(folder, salt=tmp_path / "salt2"))
    with pytest.raises(UserError, match="linkage"):
        prepare(config(folder, salt=tmp_path / "salt1", linkage=tmp_path / "linkage.csv"))


def test_strict_stops_at_the_first_bad_file_and_leaves_nothing_whatever_decodes(many, config):
    settings = config(many, size=8, strict=True)
    for num_workers in (1, 2):
        with pytest.raises(UserError, match=r"A/broken\.png: not an image"):
            prepare(replace(settings, num_workers=num_workers))
        assert beside(settings) == []
    interrupted(replace(settings, strict=False), 2)
    with pytest.raises(UserError, match=r"A/broken\.png: not an image"):  # in a part that is there already
        prepare(settings)


def test_what_is_no_regular_file_is_a_reject_and_never_waited_for(folder, config):
    os.mkfifo(folder / "A" / "pipe.png")
    (folder / "A" / "zero.png").symlink_to("/dev/zero")
    (folder / "A" / "loop.png").symlink_to("loop.png")
    (folder / "A" / "folder.png").mkdir()
    (folder / "loop").symlink_to("loop")
    prepare(config(folder))
    reasons = {row["path"]: row["reason"] for row in pq.read_table(config(folder).out / REJECTS).to_pylist()}
    assert set(reasons) == {"A/pipe.png", "A/zero.png", "A/loop.png"}
    assert "pipe or a device" in reasons["A/pipe.png"]


def test_names_that_are_no_text_are_spelled_out(folder, config):
    for i, name in enumerate((b"\xff\xfe.png", b"new\nline.png", b"\xc3\xa9.png")):
        shutil.copy(folder / "A" / f"p{i}-{4 * i}.png", os.path.join(os.fsencode(folder), b"A", name))
    (folder / "B" / os.fsdecode(b"\xfd.png")).write_bytes(b"rubbish")
    for hidden in (False, True):
        settings = config(folder, hash_patients=hidden)
        settings = replace(settings, out=settings.out.with_name(f"data{hidden}"))
        manifest = prepare(settings)
        assert sum(info.num_images for info in manifest.splits.values()) == 83
        prepare(settings)
    out = settings.out.with_name("dataFalse")
    names = {name for split in read_manifest(out).splits for name in read_split(out, split).image_id}
    assert {"\\xff\\xfe", "new\nline", "é"} <= names
    assert pq.read_table(out / REJECTS)["path"].to_pylist() == ["B/\\xfd.png"]


def test_rows_that_are_counted_as_left_out_rejected_or_removed_make_up_all(folder, config, films, save):
    save(folder / "C" / "p77-1.png", films[3][::-1])
    (folder / "A" / "p78-1.png").write_bytes(b"")
    manifest = prepare(config(folder, classes=("A", "B"), subset=0.7))
    report = manifest.report
    assert report["left_out"].pop("of a class that was not asked for", 0) <= 1
    total = sum(info.num_images for info in manifest.splits.values()) + manifest.rejects
    assert total + sum(read_manifest(config(folder).out).report["left_out"].values()) == 82
    assert pq.read_table(config(folder).out / FINDINGS).num_rows == 0


def test_unreadable_folders_are_not_taken_for_empty_ones(folder, config):
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (folder / "A").chmod(0)
    try:
        with pytest.raises(UserError, match="can't be read"):
            prepare(config(folder))
    finally:
        (folder / "A").chmod(0o755)


def test_a_source_in_which_only_some_rows_have_a_split(folder, config, tmp_path):
    import csv

    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    table = folder / "t.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient_id", "split"])
        for path in files:
            patient = path[3:].partition("-")[0]
            writer.writerow([path, path[0], patient, ("train", "test", "")[int(patient) % 3]])
    manifest = prepare(config(table, patient_regex=None))
    assert (
        sum(i.num_images for i in manifest.splits.values()) + manifest.rejects + manifest.report["leaks"]["images"]
        == 80
    )
