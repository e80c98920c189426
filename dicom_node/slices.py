"""Chooses the slices of a series that are scored, and takes everything off them that the service does not need."""

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict
from pydicom import Dataset, FileDataset, dcmread, uid

from dicom_node.reading import read

_GEOMETRY: Final = ("ImagePositionPatient", "ImageOrientationPatient")
_PIXEL_GROUPS: Final = (0x0028, 0x7FE0)
"""Groups of elements that describe and hold pixels. Neither identifies a patient."""


class Slice(BaseModel):
    """One slice of a series."""

    model_config = ConfigDict(frozen=True)

    name: str
    """Its name in the spool."""
    sop_instance: str
    localizer: bool
    number: int | None
    """Instance Number."""
    position: float | None
    """Millimetres along the normal of the slices."""


class Choice(BaseModel):
    """The slices that are scored, in order, and the rule in words."""

    model_config = ConfigDict(frozen=True)

    slices: tuple[Slice, ...]
    rule: str


def describe(path: Path) -> Slice:
    """Read what the choice of slices needs from a file in the spool. Raises OSError."""
    header = dcmread(path, stop_before_pixels=True)
    return Slice(
        name=path.stem,
        sop_instance=header.SOPInstanceUID,
        localizer="LOCALIZER" in (header.get("ImageType") or ()),
        number=_number(header),
        position=_position(header),
    )


def choose(slices: Sequence[Slice], most: int) -> Choice:
    """Choose at most `most` slices: no localizers, in the order of the scan, every n-th of a longer series."""
    axial = [one for one in slices if not one.localizer]
    if all(one.position is not None for one in axial):
        ordered = sorted(axial, key=lambda one: (one.position, one.sop_instance))
    else:
        ordered = sorted(axial, key=lambda one: (one.number or 0, one.sop_instance))
    step = max(1, math.ceil(len(ordered) / most))
    chosen = ordered[(step - 1) // 2 :: step]
    words = f"all {len(ordered)} slices" if step == 1 else f"{len(chosen)} of {len(ordered)} slices, 1 in {step}"
    if len(axial) < len(slices):
        words += f", without {len(slices) - len(axial)} localizers"
    return Choice(slices=tuple(chosen), rule=words)


def anonymous(path: Path) -> bytes:
    """Return a slice as a DICOM file with its pixels, and without anything about the patient."""
    file = read(path.read_bytes())
    bare = Dataset({element.tag: element for element in file if element.tag.group in _PIXEL_GROUPS})
    bare.Modality = "CT"
    bare.SOPClassUID, bare.SOPInstanceUID = uid.CTImageStorage, uid.UID("2.25.0")
    if "ImageType" in file:
        bare.ImageType = file.ImageType
    written = BytesIO()
    meta = file.file_meta
    meta.MediaStorageSOPInstanceUID = bare.SOPInstanceUID
    copy = FileDataset(written, bare, preamble=bytes(128), file_meta=meta)
    copy.set_original_encoding(*file.original_encoding)
    copy.save_as(written, enforce_file_format=True)
    return written.getvalue()


def _number(header: Dataset) -> int | None:
    try:
        return int(header.InstanceNumber)
    except (AttributeError, TypeError, ValueError):
        return None


def _position(header: Dataset) -> float | None:
    try:
        point, (ax, ay, az, bx, by, bz) = (list(map(float, header[keyword].value)) for keyword in _GEOMETRY)
        normal = (ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx)
        return sum(along * at for along, at in zip(normal, point, strict=True))
    except (KeyError, TypeError, ValueError):
        return None
