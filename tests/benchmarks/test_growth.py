"""The growth of cost: its requests, its page, and a short run on a real server."""

import shutil
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import footprint, growth
from benchmarks.growth import Point
from load_tests.verdict import BAD_INPUT

RESULTS = {axis.name: {1: [Point(100, 9, 700), Point(120, 7, 710)], 2: [Point(200, 9, 800)]} for axis in growth.AXES}


def test_requests_that_are_unfinished_at_the_end_are_as_small_a_part_of_the_measurement_however_large_they_are() -> (
    None
):
    assert [growth.length(4, images, 4) for images in (1, 8, 16, 64)] == [4, 4, 8, 32]


def test_the_first_requests_of_many_connections_are_a_small_part_of_the_measurement() -> None:
    assert [growth.length(4, 1, connections) for connections in (1, 128, 256, 512)] == [4, 4, 8, 16]


@pytest.mark.parametrize("megapixels", growth.MEGAPIXELS)
def test_an_enlarged_phantom_has_the_size_and_is_small_enough_for_the_service(megapixels: float) -> None:
    data = growth.enlarged(megapixels)
    width, height = Image.open(BytesIO(data)).size
    assert width * height == pytest.approx(megapixels * 2**20, rel=0.01)
    assert width * height <= 2**24
    assert len(data) < 20 * 2**20


def test_images_in_one_request_are_as_many_parts() -> None:
    post = growth.together(3)
    ((headers, body),) = post.bodies
    assert headers["Content-Type"] == "multipart/form-data; boundary=chestct"
    assert body.count(b'name="images"') == 3


def test_the_page_has_a_picture_and_a_table_for_each_axis(tmp_path: Path) -> None:
    text = growth.document(RESULTS, footprint.describe_machine(), seconds=4, rounds=2)
    assert text.count("| 1 | 110 (100 to 120) | 8 (7 to 9) | 705 (700 to 710) |") == len(growth.AXES)
    for axis in growth.AXES:
        growth.draw(axis, RESULTS[axis.name], tmp_path / growth.PICTURE.format(axis.name))
        assert f"]({growth.PICTURE.format(axis.name)})" in text
        with Image.open(tmp_path / growth.PICTURE.format(axis.name)) as picture:
            assert picture.size == (1200, 340)


def test_no_rounds_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert growth.main(["--rounds", "0"]) == BAD_INPUT
    assert capsys.readouterr().err == "growth: --seconds and --rounds: expected 1 or more\n"


@pytest.mark.long
@pytest.mark.skipif(shutil.which("wrk") is None, reason="no wrk here (Debian: apt-get install wrk)")
@pytest.mark.usefixtures("tiny_store")
def test_a_short_run_measures_every_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, places in {"CONNECTIONS": (1, 64), "MEGAPIXELS": (0.1, 1), "IMAGES": (1, 8), "WORKERS": (1,)}.items():
        monkeypatch.setattr(growth, name, places)
    arguments = ["--seconds", "5", "--rounds", "1", "--folder", str(tmp_path)]
    assert growth.main(arguments) == 0, capsys.readouterr().err
    text = (tmp_path / growth.DOCUMENT).read_text()
    assert all(f"\n| {place} | " in text for place in ("64", "0.1", "8"))
    assert sorted(path.name for path in tmp_path.glob("*.png")) == sorted(
        growth.PICTURE.format(axis.name) for axis in growth.AXES
    )
