import pytest

from serve import formats
from serve.problems import Problem

NPZ, PARQUET, ZIP = "application/x-npz", "application/vnd.apache.parquet", "application/zip"


@pytest.mark.parametrize(
    ("accept", "count", "name"),
    [
        (None, 1, "png"),
        (None, 2, "zip"),
        ("*/*", 1, "png"),
        ("text/html, */*;q=0.1", 2, "zip"),
        ("application/*", 1, "zip"),
        ("image/*", 1, "png"),
        (NPZ, 1, "npz"),
        (f"{ZIP};q=0.2, {PARQUET};q=0.9, {NPZ};q=0.5", 2, "parquet"),
        (f"*/*, {ZIP};q=0", 2, "npz"),
        ("APPLICATION/X-NPZ", 2, "npz"),
        (f"image/png, {NPZ};q=0.1", 2, "npz"),
    ],
)
def test_the_accept_header_chooses_the_format(accept, count, name):
    assert formats.negotiate(accept, count).name == name


@pytest.mark.parametrize(
    "accept", ["text/html", "image/png;q=0", "*/*;q=0", "nonsense", "image/jpeg, text/*", "*/*;q=x", "*/*;q=nan"]
)
def test_an_accept_header_that_nothing_meets_is_406(accept):
    with pytest.raises(Problem) as caught:
        formats.negotiate(accept, 1)
    assert caught.value.status == 406
