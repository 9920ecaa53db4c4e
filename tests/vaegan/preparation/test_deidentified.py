"""Nothing of a DICOM file but its pixels and salted hashes may reach a dataset."""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.errors import UserError
from vaegan.phantom import PhantomConfig, phantom
from vaegan.prepare import main
from vaegan.shards import read_manifest, read_split

pydicom = pytest.importorskip("pydicom")

TEXT = {
    "PatientName": "Okonkwo^Adaeze", "PatientID": "MRN-4471{i:03d}",
    "OtherPatientIDs": "SSN-998877", "IssuerOfPatientID": "StMungo",
    "PatientBirthName": "Eze", "PatientAddress": "12 Harley Street",
    "PatientTelephoneNumbers": "+44 20 7946", "PatientComments": "prefers to be called Ada",
    "AdditionalPatientHistory": "fell from a ladder", "Occupation": "lightkeeper",
    "EthnicGroup": "Igbo", "MilitaryRank": "corporal",
    "PatientMotherBirthName": "Nwosu", "ResponsiblePerson": "Chidi",
    "AccessionNumber": "ACC{i:05d}", "StudyID": "STUDY77",
    "InstitutionName": "Royal Infirmary", "InstitutionAddress": "1 Hospital Road",
    "ReferringPhysicianName": "Quillfeather^Meredith", "PerformingPhysicianName": "House^Gregory",
    "OperatorsName": "Radiographer^Rita", "StationName": "XRAY-ROOM-3",
    "DeviceSerialNumber": "SN-0815-4711", "StudyDescription": "Thorax for Okonkwo",
    "ProtocolName": "p.a. Okonkwo", "ImageComments": "note: patient Okonkwo refused lateral",
    "DerivationDescription": "sent by Quillfeather", "RequestingPhysician": "Bailey^Miranda",
}  # fmt: skip
DATES = {"PatientBirthDate": "19610704", "StudyDate": "20240229", "StudyTime": "134755"}
UIDS = {"StudyInstanceUID": "1.2.826.0.1.4471.1.{i}", "SeriesInstanceUID": "1.2.826.0.1.4471.2.{i}",
        "FrameOfReferenceUID": "1.2.826.0.1.4471.3.{i}", "SOPInstanceUID": "1.2.826.0.1.4471.4.{i}"}  # fmt: skip


def write_dicom(path, pixels, i):
    """A film whose header tells everything about a patient who does not exist."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = UIDS["SOPInstanceUID"].format(i=i)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.SourceApplicationEntityTitle = "OKONKWO_AE"
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"Okonkwo".ljust(128, b"\0"))
    for name, value in (TEXT | DATES | UIDS).items():
        setattr(data, name, value.format(i=i // 2 if name == "PatientID" else i))
    data.SOPClassUID, data.Modality, data.PatientSex, data.PatientAge = meta.MediaStorageSOPClassUID, "DX", "F", "063Y"
    data.private_block(0x0011, "ACME ARCHIVE", create=True).add_new(0x01, "LO", "private copy of Okonkwo")
    data.add_new(0x60000010, "US", 8)  # an overlay, in which hospitals write names too
    data.add_new(0x60000011, "US", 8)
    data.add_new(0x60000022, "LO", "Okonkwo overlay")
    data.add_new(0x60003000, "OW", b"\xff" * 8)
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = *pixels.shape, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """60 films of 30 patients, two that fail, and a table of labels: names and numbers wherever they can be."""
    root = tmp_path_factory.mktemp("archive_of_Royal_Infirmary")
    films = phantom(PhantomConfig(patients=40), size=64, seed=1).pixels[:60, :, :, 0]
    with (root / "Okonkwo_labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "PatientName", "reader"])
        for i, film in enumerate(films):
            write_dicom(root / "films" / f"Okonkwo_{i // 2:02d}" / f"MRN-4471_{i}.dcm", film, i)
            rows.writerow(
                [f"Okonkwo_{i // 2:02d}/MRN-4471_{i}.dcm", "AB"[i // 2 % 2], "Okonkwo^Adaeze", "Quillfeather^Meredith"]
            )
        (root / "films" / "Okonkwo_cut.dcm").write_bytes(
            (root / "films/Okonkwo_00/MRN-4471_0.dcm").read_bytes()[:-2000]
        )
        rows.writerow(["Okonkwo_cut.dcm", "A", "Okonkwo^Adaeze", "Quillfeather^Meredith"])
        rows.writerow(["Okonkwo_absent.dcm", "B", "Okonkwo^Adaeze", "Quillfeather^Meredith"])
    return root


def everything_in(folder):
    """All bytes of a folder's files, and all that its Parquet files say once unpacked."""
    content = b""
    for path in filter(Path.is_file, sorted(folder.rglob("*"))):
        content += path.name.encode() + path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            content += str(table.schema.metadata).encode() + str(pq.read_metadata(path).to_dict()).encode()
            for name in table.column_names:
                content += b"".join(v if isinstance(v, bytes) else str(v).encode() for v in table[name].to_pylist())
    return content


def identifying():
    words = [part for value in TEXT.values() for part in value.replace("{i:03d}", "").replace("{i:05d}", "").split("^")]
    named = {*words, *DATES.values(), "1.2.826.0.1.4471", "Okonkwo", "OKONKWO", "MRN-4471", "Infirmary", "ACME ARCHIVE"}
    return {word for word in named if len(word) > 5}  # shorter ones may stand in a picture's bytes by chance


@pytest.fixture(scope="module")
def prepared(archive, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    labels, linkage = archive / "Okonkwo_labels.csv", out / "linkage.csv"
    assert main(["--images", str(archive / "films"), "--dicom.labels", str(labels), "--out", str(out / "data"),
                 "--salt", str(out / "salt"), "--linkage", str(linkage)]) == 0  # fmt: skip
    return out


def test_no_word_of_the_headers_of_file_names_or_of_the_table_is_in_any_file_of_the_dataset(archive, prepared):
    source = everything_in(archive)
    found = everything_in(prepared / "data")
    words = identifying()
    assert all(word.encode() in source for word in words)
    assert [word for word in sorted(words) if word.encode() in found] == []
    assert not list(prepared.glob(".data*"))


def test_a_page_and_a_sheet_of_it_are_as_silent(prepared):
    from vaegan.inspect import main as inspect

    assert inspect([str(prepared / "data"), "--out", str(prepared / "page")]) == 0
    found = everything_in(prepared / "page")
    assert [word for word in sorted(identifying()) if word.encode() in found] == []


def test_films_of_one_patient_share_a_hash_and_a_split_and_pixels_are_those_of_the_files(archive, prepared):
    manifest = read_manifest(prepared / "data")
    rows = list(csv.DictReader((prepared / "linkage.csv").read_text().splitlines()))
    source_of = {row["image_id"]: row for row in rows}
    patients = {}
    for split in manifest.splits:
        images = read_split(prepared / "data", split)
        for pixels, image_id, patient_id in zip(images.pixels, images.image_id, images.patient_id, strict=True):
            row = source_of[image_id]
            patients.setdefault(row["source_patient_id"], set()).add((patient_id, split))
            original = pydicom.dcmread(next(archive.rglob(row["source"].rpartition("/")[2]))).pixel_array
            np.testing.assert_array_equal(pixels[..., 0], original)
    assert len(patients) == 30
    assert all(len(found) == 1 for found in patients.values())
    assert manifest.rejects == 2
    assert (
        oct((prepared / "linkage.csv").stat().st_mode & 0o777)
        == oct((prepared / "salt").stat().st_mode & 0o777)
        == "0o600"
    )


def test_with_the_same_salt_a_patient_has_the_same_hash_and_with_another_a_different_one(archive, prepared, tmp_path):
    def patients(out, *more):
        assert main(["--images", str(archive / "films"), "--dicom.labels", str(archive / "Okonkwo_labels.csv"),
                     "--out", str(out), *more]) == 0  # fmt: skip
        return {name for split in read_manifest(out).splits for name in read_split(out, split).patient_id}

    before = {
        n for split in read_manifest(prepared / "data").splits for n in read_split(prepared / "data", split).patient_id
    }
    assert patients(tmp_path / "same", "--salt", str(prepared / "salt")) == before
    assert not patients(tmp_path / "fresh") & before


def test_dicom_files_among_other_images_are_refused_rather_than_taken_with_their_names(archive, tmp_path, capsys):
    films = phantom(PhantomConfig(patients=30), size=64, seed=2).pixels[:40, :, :, 0]
    for i, film in enumerate(films):
        (tmp_path / "in" / "AB"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(film).save(tmp_path / "in" / "AB"[i % 2] / f"{i}.png")
    (tmp_path / "in" / "A" / "hidden.png").write_bytes((archive / "films/Okonkwo_00/MRN-4471_0.dcm").read_bytes())
    assert main(["--images", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--source", "folder"]) == 0
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert [row["path"] for row in rejects] == ["A/hidden.png"]
    assert "--source dicom" in rejects[0]["reason"]


def test_a_folder_for_each_patient_is_no_folder_for_each_class(archive, tmp_path, capsys):
    assert main(["--images", str(archive / "films"), "--out", str(tmp_path / "out")]) == 2
    assert "one for each patient" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_salt_that_is_none_is_refused(archive, tmp_path):
    from vaegan.preparation.identity import read_or_make_salt

    (tmp_path / "salt").write_text("pepper")
    with pytest.raises(UserError, match="isn't a salt"):
        read_or_make_salt(tmp_path / "salt")
