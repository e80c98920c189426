"""What tells a DICOM file from others, without the library that reads it."""


def is_dicom(data: bytes) -> bool:
    """Whether these bytes say that they are a DICOM file; what they are called elsewhere does not count."""
    return data[128:132] == b"DICM"
