"""The choice of slices, and what is taken off them before the service sees them."""

from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread, uid

from dicom_node.slices import Slice, anonymous, choose, describe
from tests.dicom_node.slices import PATIENT, PATIENT_ID, ct_slice, levels, written


def slices(count: int, *, localizers: int = 0, positions: bool = True) -> list[Slice]:
    """Return slices in the reverse order of the scan, and localizers."""
    axial = [
        Slice(
            name=f"s{number}",
            sop_instance=f"1.{number}",
            localizer=False,
            number=number,
            position=2.5 * number if positions else None,
        )
        for number in range(count, 0, -1)
    ]
    others = [
        Slice(name=f"l{number}", sop_instance=f"2.{number}", localizer=True, number=number, position=None)
        for number in range(localizers)
    ]
    return [*others, *axial]


def numbers(count: int, most: int, *, positions: bool = True) -> list[int | None]:
    return [one.number for one in choose(slices(count, positions=positions), most).slices]


@pytest.mark.parametrize("positions", [True, False])
def test_a_short_series_is_scored_whole_in_the_order_of_the_scan(positions: bool) -> None:
    assert numbers(5, 5, positions=positions) == [1, 2, 3, 4, 5]
    assert choose(slices(5), 5).rule == "all 5 slices"


def test_of_a_long_series_every_nth_slice_is_scored() -> None:
    assert numbers(6, 5) == [1, 3, 5]
    assert numbers(9, 3) == [2, 5, 8]
    choice = choose(slices(200), 64)
    assert (len(choice.slices), choice.rule) == (50, "50 of 200 slices, 1 in 4")
    assert all(len(numbers(count, 64)) <= 64 for count in range(1, 700))


def test_localizers_are_left_out_and_said() -> None:
    choice = choose(slices(2, localizers=3), 64)
    assert [one.name for one in choice.slices] == ["s1", "s2"]
    assert choice.rule == "all 2 slices, without 3 localizers"
    assert choose(slices(0, localizers=1), 64).slices == ()


def test_a_slice_is_described_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "name.dcm"
    path.write_bytes(written(ct_slice(number=4, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])))
    assert describe(path) == Slice(name="name", sop_instance="1.2.3.4.4", localizer=False, number=4, position=0.0)
    path.write_bytes(written(ct_slice(number=4)))
    assert describe(path).position == 10.0
    path.write_bytes(written(ct_slice(ImagePositionPatient=None, InstanceNumber=None)))
    assert (describe(path).position, describe(path).number) == (None, None)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.RLELossless])
def test_the_service_gets_the_pixels_and_nothing_of_the_patient(tmp_path: Path, syntax: str) -> None:
    path = tmp_path / "slice.dcm"
    path.write_bytes(written(ct_slice(syntax=syntax)))
    sent = anonymous(path)
    assert PATIENT.encode() not in sent
    assert PATIENT_ID.encode() not in sent
    assert b"1.2.3.4" not in sent
    read = dcmread(BytesIO(sent))
    assert read.file_meta.TransferSyntaxUID == syntax
    assert (read.pixel_array == levels()).all()
    assert {element.tag.group for element in read} == {0x0008, 0x0028, 0x7FE0}
    assert read.RescaleSlope == ct_slice().RescaleSlope
