"""The guarded process: files that crash, fill or hang it, and what their requests get."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid

from chestct import guarded_decoding, image, reader_child, reader_process
from chestct.card import InputSpec
from chestct.image import Picture, encode_png
from chestct.invalid_image import MAX_PIXELS, InvalidImage
from chestct.processes import is_alive
from chestct.reader_process import Cause, ProcessEnded
from serving.inference.guarded_reader import GuardedReader, ReaderFailed
from serving.telemetry import metrics
from serving.telemetry.request_record import RequestRecord
from serving.unavailable import Closed
from tests.dicom import dicom_file
from tests.server import ROOT
from tests.waiting import wait_until

LEVELS = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
SPEC = InputSpec(height=64, width=64)
STANDARD = image.from_dicom(LEVELS, SPEC).pixels[:, :, 0]
"""What a file with these levels is decoded to."""
MUTATIONS = 12
"""Broken files of each transfer syntax."""

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' /proc to see whether a process works")


@pytest.fixture(scope="module")
def reader() -> Iterator[GuardedReader]:
    reader = GuardedReader(SPEC)
    yield reader
    asyncio.run(reader.close())


@pytest.fixture
def new_reader() -> Iterator[GuardedReader]:
    reader = GuardedReader(SPEC)
    yield reader
    asyncio.run(reader.close())


def read(reader: GuardedReader, data: bytes, *, seconds: float = 30) -> object:
    """The grey levels, or the code of the refusal."""
    try:
        reading = asyncio.run(reader.read(data, RequestRecord("r", deadline=time.monotonic() + seconds)))
    except InvalidImage as refusal:
        return refusal.code
    return reading.picture.pixels[:, :, 0]


def is_read(reader: GuardedReader) -> bool:
    return np.array_equal(read(reader, dicom_file(LEVELS)), STANDARD)


def child(reader: GuardedReader) -> int:
    assert reader._process.id is not None
    return reader._process.id


def test_files_are_read_one_after_the_other_in_one_process(reader: GuardedReader) -> None:
    assert is_read(reader)
    process = child(reader)
    assert read(reader, dicom_file(LEVELS, Modality="MR")) == "unsupported_dicom"
    assert np.array_equal(read(reader, dicom_file(LEVELS, uid.JPEG2000Lossless)), STANDARD)
    assert child(reader) == process


def test_the_process_decodes_pictures_to_the_same_pixels(reader: GuardedReader) -> None:
    data = encode_png(LEVELS)
    (pixels, facts), *_ = asyncio.run(reader.read(data, RequestRecord("r")))
    expected = image.decode(data, SPEC)
    assert np.array_equal(pixels, expected.pixels)
    for name, fact in expected.facts._asdict().items():
        assert np.array_equal(getattr(facts, name), fact), name
    assert read(reader, data[:-30]) == "undecodable_image"
    assert read(reader, b"text") == "undecodable_image"


def test_the_process_ends_with_its_service(new_reader: GuardedReader) -> None:
    assert new_reader._process.id is None
    assert read(new_reader, b"text") == "undecodable_image"
    process = child(new_reader)
    asyncio.run(new_reader.close())
    assert not is_alive(process)
    with pytest.raises(Closed):
        read(new_reader, b"text")


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' signal at a parent's death")
def test_the_process_dies_with_a_worker_that_is_killed_even_if_it_is_stopped() -> None:
    code = """
import asyncio, os, sys, time
from chestct.card import InputSpec
from serving.telemetry.request_record import RequestRecord
from serving.inference.guarded_reader import GuardedReader
reader = GuardedReader(InputSpec(height=64, width=64))
try:
    asyncio.run(reader.read(b"text", RequestRecord("r")))
except ValueError:
    print(reader._process.id, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        process = int(worker.stdout.readline())
        os.kill(process, signal.SIGSTOP)
        worker.kill()
    wait_until(lambda: not is_alive(process), "the process is dead")


def test_the_signals_of_a_stop_do_not_reach_the_process(reader: GuardedReader) -> None:
    """BentoML's supervisor sends them also to the children of a worker, while the worker still answers."""
    assert is_read(reader)
    process = child(reader)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(process, number)
    assert is_read(reader)
    assert child(reader) == process


def test_a_process_that_is_killed_over_a_file_is_replaced_and_the_file_read(reader: GuardedReader) -> None:
    assert is_read(reader)
    process = child(reader)
    os.kill(process, signal.SIGSTOP)
    threading.Timer(0.2, os.kill, (process, signal.SIGKILL)).start()
    assert is_read(reader)
    assert child(reader) != process


def test_a_process_that_died_between_two_files_is_replaced(reader: GuardedReader) -> None:
    assert is_read(reader)
    os.kill(child(reader), signal.SIGKILL)
    assert is_read(reader)


@needs_proc
@pytest.mark.parametrize("size", [0, 10_000_000], ids=["small", "larger than a socket takes"])
def test_a_process_that_is_stopped_is_replaced_and_the_file_read(
    reader: GuardedReader, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    assert is_read(reader)
    monkeypatch.setattr(reader_process, "HANG_SECONDS", 1.5)
    process = child(reader)
    os.kill(process, signal.SIGSTOP)
    assert np.array_equal(read(reader, dicom_file(LEVELS, DataSetTrailingPadding=bytes(size))), STANDARD)
    assert child(reader) != process


SLEEP = "import time; time.sleep(60)"


@needs_proc
@pytest.mark.parametrize("code", [SLEEP, "raise SystemExit(1)", "import os; os.abort()"])
def test_a_process_that_does_not_start_is_not_the_files_fault(
    new_reader: GuardedReader, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(reader_process, "HANG_SECONDS", 1.5)
    monkeypatch.setattr(reader_process, "COMMAND", (sys.executable, "-c", code))
    with pytest.raises(ReaderFailed):
        read(new_reader, dicom_file(LEVELS))
    monkeypatch.undo()
    assert is_read(new_reader)


@pytest.mark.parametrize(
    ("remaining", "expected"), [(-1, guarded_decoding.MIN_SECONDS), (5, 5), (600, reader_process.MAX_SECONDS)]
)
def test_a_file_gets_the_time_its_request_has_left_within_bounds(
    new_reader: GuardedReader, monkeypatch: pytest.MonkeyPatch, remaining: float, expected: float
) -> None:
    given: list[float] = []

    def hang(_data: bytes, _spec: InputSpec, seconds: float) -> Picture:
        given.append(seconds)
        raise ProcessEnded(Cause.HUNG)

    monkeypatch.setattr(new_reader._process, "decode", hang)
    with pytest.raises(ReaderFailed):
        read(new_reader, b"a file", seconds=remaining)
    assert given[0] == pytest.approx(expected, abs=2)
    assert len(given) == (1 if remaining < 0 else 2)


FAULT = """
import os, signal
from chestct import dicom
from chestct.invalid_image import InvalidImage
from chestct import reader_child
def read(*_):
    {fault}
dicom.read = read
reader_child.MAX_CPU_SECONDS = {seconds}
reader_child.main()
"""


LIE = """
    def send(stream, *_):
        stream.write(reader_child.REPLY.pack(b"P", len("{words}"), {pixels}) + b"{words}")
        stream.flush()
    reader_child._send = send
    raise InvalidImage("code", "message")
"""


@pytest.mark.parametrize(
    ("fault", "cause", "outcome"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", Cause.CRASHED, "undecodable_image"),
        ("os.abort()", Cause.CRASHED, "undecodable_image"),
        ("while True: pass", Cause.OUT_OF_TIME, "undecodable_image"),
        ("raise MemoryError", Cause.OUT_OF_MEMORY, "image_too_large"),
        ("os.kill(os.getpid(), signal.SIGKILL)", Cause.KILLED, "failed"),
        ("os._exit(0)", Cause.KILLED, "failed"),
        ("raise KeyError", Cause.KILLED, "failed"),
        (LIE.format(words="{}", pixels=0), Cause.KILLED, "failed"),
        (LIE.format(words="null", pixels=2**31), Cause.KILLED, "failed"),
    ],
)
def test_the_exit_of_the_process_decides_whose_fault_it_is(
    new_reader: GuardedReader, monkeypatch: pytest.MonkeyPatch, fault: str, cause: Cause, outcome: str
) -> None:
    seconds = 0.2 if cause is Cause.OUT_OF_TIME else reader_child.MAX_CPU_SECONDS  # an exit takes CPU time, too
    monkeypatch.setattr(reader_process, "COMMAND", (sys.executable, "-c", FAULT.format(fault=fault, seconds=seconds)))
    before = metrics.READER_RESTARTS.labels(cause)._value.get()
    try:
        assert read(new_reader, dicom_file(LEVELS)) == outcome
    except ReaderFailed:
        assert outcome == "failed"
    ended = metrics.READER_RESTARTS.labels(cause)._value.get() - before
    assert ended == (1 if cause is Cause.OUT_OF_TIME else 2)


@needs_proc
def test_the_costliest_file_fits_into_the_planned_memory_and_frees_it(
    new_reader: GuardedReader,
) -> None:
    noise = np.random.default_rng(0).integers(0, 120, (4096, MAX_PIXELS // 4096)).astype(np.uint8)
    costly = dicom_file(noise, uid.JPEGLosslessSV1)
    assert isinstance(read(new_reader, costly), np.ndarray)
    status = Path(f"/proc/{child(new_reader)}/status").read_text()
    used = {name: int(status.split(f"{name}:")[1].split()[0]) // 1024 for name in ("VmHWM", "VmRSS")}
    assert used["VmHWM"] < 300  # MiB; k8s/base/deployment.yaml counts on it
    assert used["VmRSS"] < 120
    process = child(new_reader)
    assert is_read(new_reader)
    assert child(new_reader) == process


def test_a_bomb_hits_the_memory_limit(reader: GuardedReader) -> None:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    megabyte = stream.compress(bytes(1 << 20)) + stream.flush(zlib.Z_FULL_FLUSH)
    deflated = megabyte * 20_000 + stream.flush()
    small = dicom_file(LEVELS, uid.DeflatedExplicitVRLittleEndian)
    end = 144 + int.from_bytes(small[140:144], "little")  # in the elements that are not deflated
    assert read(reader, small[:end] + deflated) == "image_too_large"
    assert np.array_equal(read(reader, small), STANDARD)


@pytest.mark.parametrize(
    "syntax",
    [
        *(uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless),
        *(uid.JPEG2000Lossless, uid.JPEGBaseline8Bit),
    ],
    ids=lambda syntax: syntax.name,
)
def test_broken_bytes_are_read_or_refused_whatever_they_do_to_the_decoder(
    reader: GuardedReader, syntax: uid.UID
) -> None:
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
