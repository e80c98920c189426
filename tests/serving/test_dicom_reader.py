import asyncio
import contextlib
import os
import random
import signal
import threading
import time
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from pydicom import uid

from chestct.image import InvalidImage
from serving.dicom_reader import DicomReader, is_dicom
from tests.dicom import dicom_file

LEVELS = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
MUTATIONS = 12
"""Broken files of each transfer syntax."""


@pytest.fixture(scope="module")
def reader() -> Iterator[DicomReader]:
    reader = DicomReader()
    yield reader
    reader.close()


def read(reader: DicomReader, data: bytes) -> object:
    """The grey levels, or the code of the refusal."""
    try:
        return asyncio.run(reader.read(data))
    except InvalidImage as refusal:
        return refusal.code


def alive(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


def child(reader: DicomReader) -> int:
    assert reader.process is not None
    return reader.process


def test_a_file_is_known_by_its_content() -> None:
    assert is_dicom(dicom_file(LEVELS))
    assert not is_dicom(b"DICM" + bytes(200))


def test_files_are_read_one_after_the_other_in_one_process(reader: DicomReader) -> None:
    assert np.array_equal(read(reader, dicom_file(LEVELS)), LEVELS)
    process = child(reader)
    assert read(reader, dicom_file(LEVELS, Modality="MR")) == "unsupported_dicom"
    assert np.array_equal(read(reader, dicom_file(LEVELS, uid.JPEG2000Lossless)), LEVELS)
    assert child(reader) == process


def test_the_process_ends_with_its_service() -> None:
    reader = DicomReader()
    assert read(reader, b"text") == "undecodable_image"
    process = child(reader)
    reader.close()
    assert not alive(process)


def test_a_decoder_that_dies_costs_its_file_and_no_other(reader: DicomReader) -> None:
    read(reader, dicom_file(LEVELS))
    process = child(reader)
    os.kill(process, signal.SIGSTOP)
    threading.Timer(0.2, os.kill, (process, signal.SIGKILL)).start()
    assert read(reader, dicom_file(LEVELS)) == "undecodable_image"
    assert np.array_equal(read(reader, dicom_file(LEVELS)), LEVELS)


def test_a_process_that_died_between_two_files_is_replaced(reader: DicomReader) -> None:
    read(reader, dicom_file(LEVELS))
    os.kill(child(reader), signal.SIGKILL)
    time.sleep(0.2)
    assert np.array_equal(read(reader, dicom_file(LEVELS)), LEVELS)


def test_a_bomb_meets_the_limit_of_memory(reader: DicomReader) -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    megabyte = stream.compress(bytes(1 << 20)) + stream.flush(zlib.Z_FULL_FLUSH)
    deflated = megabyte * 20_000 + stream.flush()
    small = dicom_file(LEVELS, uid.DeflatedExplicitVRLittleEndian)
    end = 144 + int.from_bytes(small[140:144], "little")  # of the elements that are not deflated
    assert read(reader, small[:end] + deflated) == "image_too_large"
    assert np.array_equal(read(reader, small), LEVELS)


@pytest.mark.parametrize(
    "syntax",
    [
        *(uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless),
        *(uid.JPEG2000Lossless, uid.JPEGBaseline8Bit),
    ],
    ids=lambda syntax: syntax.name,
)
def test_broken_bytes_are_read_or_refused_whatever_they_do_to_the_decoder(reader: DicomReader, syntax: uid.UID) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        good = dicom_file(LEVELS, syntax)
    luck = random.Random(20)
    outcomes = []
    for _ in range(MUTATIONS):
        data = bytearray(good)
        if luck.random() < 0.3:
            del data[luck.randrange(140, len(data)) :]
        else:
            for _ in range(luck.choice((1, 4, 16))):
                data[luck.randrange(140, len(data))] ^= 1 << luck.randrange(8)
        outcomes.append(read(reader, bytes(data)))
    assert {outcome for outcome in outcomes if isinstance(outcome, str)} <= {
        *("undecodable_image", "unsupported_dicom", "image_too_large")
    }
    assert np.shape(read(reader, good)) == LEVELS.shape
