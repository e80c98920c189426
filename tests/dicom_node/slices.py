"""CT slices as DICOM files, made with pydicom. They show given grey levels through the window of chestct.dicom."""

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, FileDataset, FileMetaDataset, dcmread, uid

from chestct import dicom

PATIENT = "Secret^Patient"
PATIENT_ID = "SECRET-4711"
SLOPE = round((dicom.WIDTH - 1) / 255, 12)
BLACK = dicom.CENTER - 0.5 - (dicom.WIDTH - 1) / 2


def levels(size: int = 64) -> NDArray[np.uint8]:
    """Return grey levels that show nothing in particular, uint8 [size, size]."""
    return np.arange(size * size, dtype=np.uint32).reshape(size, size).astype(np.uint8)


def ct_slice(
    shown: NDArray[np.uint8] | None = None,
    *,
    study: str = "1.2.3",
    series: str = "1.2.3.4",
    number: int = 1,
    syntax: str = uid.ExplicitVRLittleEndian,
    **elements: Any,
) -> FileDataset:
    """Return slice `number` of a series. `elements` replace header elements; None removes."""
    shown = levels() if shown is None else shown
    file = FileDataset("", Dataset(), preamble=bytes(128), file_meta=FileMetaDataset())
    file.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = uid.CTImageStorage
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = f"{series}.{number}"
    file.StudyInstanceUID, file.SeriesInstanceUID = study, series
    file.FrameOfReferenceUID = f"{study}.1"
    file.Modality, file.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    file.PatientName, file.PatientID, file.PatientBirthDate, file.PatientSex = PATIENT, PATIENT_ID, "19500101", "O"
    file.StudyDate, file.StudyTime, file.StudyID, file.AccessionNumber = "20260102", "030405", "S1", "A1"
    file.ReferringPhysicianName, file.Manufacturer, file.PositionReferenceIndicator = "Doctor^Secret", "Drawn", ""
    file.SeriesNumber, file.AcquisitionNumber, file.InstanceNumber, file.KVP = 1, 1, number, 120
    file.ImagePositionPatient = [0, 0, 2.5 * number]
    file.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    file.PixelSpacing, file.SliceThickness = [0.7, 0.7], 2.5
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.Rows, file.Columns = shown.shape
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
    file.RescaleSlope, file.RescaleIntercept = f"{SLOPE:.12f}"[:16], f"{BLACK:.9f}"[:16]
    file.PixelData = shown.astype(np.uint16).tobytes()
    file["PixelData"].VR = "OW"
    if uid.UID(syntax).is_encapsulated:
        file.compress(syntax, generate_instance_uid=False)
    else:
        file.file_meta.TransferSyntaxUID = uid.UID(syntax)
    for name, value in elements.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    return dcmread(BytesIO(written(file)))


def written(file: FileDataset) -> bytes:
    buffer = BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
