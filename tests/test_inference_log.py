"""The inference log of the real service: a row for each answer over every protocol, and nothing that is private."""

import asyncio
import hashlib
import itertools
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet
import pytest

from chestct.buckets import Store
from chestct.image import encode_png
from load_tests.server import free_ports
from tests.dicom import PATIENT, dicom_file
from tests.graphs import narrow_picture, tiny_picture
from tests.protocols import (
    BROKEN,
    PROTOCOLS,
    Sample,
    ask_all,
    batch,
    connect,
    grpc_pixels,
    oip_json_pixels,
    raw,
    tiny_sample,
)
from tests.server import ROOT, Server, bentoml, import_tiny_model, serve
from tests.small_disk import SmallDisk
from tests.waiting import wait_until

NAME = "Qx7-Jane-Doe"
"""A name that clients give to a file."""
DICOM = dicom_file(tiny_picture(1)[:, :, 0], PatientID="Qx7PatientID")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    import_tiny_model(tmp_path / "bentoml")
    return tmp_path / "bentoml"


def stop(server: Server) -> None:
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.process.wait(300) == 0


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.parquet"))


def read(folder: Path) -> list[dict[str, Any]]:
    return [row for part in parts(folder) for row in pyarrow.parquet.ParquetFile(part).read().to_pylist()]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def expected(questions: list[tuple[Any, Sample]]) -> Iterator[tuple[str, str]]:
    """The protocol and the SHA-256 of each row."""
    for ask, sample in questions:
        name = "grpc" if ask.__name__.startswith("grpc") else "http"
        if ask is batch:
            yield name, sha256(tiny_sample(0).data)
        if sample not in BROKEN:
            pixels = ask in (grpc_pixels, oip_json_pixels)
            yield name, sha256(sample.pixels.tobytes() if pixels else sample.data)


def test_each_answer_over_every_protocol_has_one_row_also_at_a_stop(home: Path, tmp_path: Path) -> None:
    samples = [tiny_sample(index) for index in range(90)] + list(BROKEN)
    questions = list(zip(itertools.cycle(PROTOCOLS), samples))
    log = tmp_path / "log"
    with serve(home, "", CHESTCT_WORKERS="2", CHESTCT_INFERENCE_LOG=str(log)) as server:
        ask_all(server, questions)
        stop(server)  # within the minute after which the parts would be closed
    rows = read(log)
    assert Counter((row["protocol"], row["sha256"]) for row in rows) == Counter(expected(questions))
    assert len({part.name.split("-")[-2] for part in parts(log)}) == len(parts(log)) <= 2  # one of each worker
    places = Counter(row["image"] for row in rows)
    assert places[1] == sum(ask is batch and sample not in BROKEN for ask, sample in questions)
    assert set(places) == {0, 1}


def test_a_row_equals_its_answer_and_holds_no_name_and_no_header(home: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    pictures = {
        "a": tiny_sample(0).data,
        "rejected": encode_png(narrow_picture()[:, :, 0]),
        "dicom": DICOM,
    }
    with serve(home, "", CHESTCT_WORKERS="1", CHESTCT_INFERENCE_LOG=str(log)) as server:
        answers = {}
        for name, content in pictures.items():
            response = httpx.post(
                f"{server.url}/v1/predict",
                files={"image": (f"{NAME}.dcm", content)},
                params={"explain": "true"},
                headers={"X-Request-ID": name, "User-Agent": NAME},
                timeout=300,
            )
            assert response.status_code == 200, response.text
            answers[name] = response.json()
        stop(server)
    rows = {row["request_id"]: row for row in read(log)}
    assert rows.keys() == answers.keys()
    assert rows["rejected"]["decision"] == "reject"
    for name, answer in answers.items():
        row = rows[name]
        assert row["sha256"] == sha256(pictures[name])
        for field in ("decision", "label", "confidence", "ood_score", "chest_ct", "model"):
            assert row[field] == answer[field], (name, field)
        for field in ("reasons", "warnings", "prediction_set", "between"):
            assert row[field].split() == answer[field], (name, field)
        assert {f"p_{label}": p for label, p in answer["probabilities"].items()}.items() <= row.items()
        assert row["input_side"] == 32
    (part,) = parts(log)
    content = part.read_bytes() + repr(rows).encode() + str(part).encode()
    for secret in (NAME, PATIENT, "Qx7PatientID"):
        assert secret.encode() not in content


def test_a_log_in_a_bucket_has_each_row(home: Path, bucket: str, s3: dict[str, str]) -> None:
    settings = {"CHESTCT_INFERENCE_LOG": bucket, "CHESTCT_INFERENCE_LOG_SECONDS": "1"}
    with serve(home, "", CHESTCT_WORKERS="1", **settings) as server:
        ask_all(server, [(raw, tiny_sample(index)) for index in range(20)])
        store = Store(bucket)
        wait_until(lambda: list(store.names()), "a part in the bucket")
        stop(server)
    found = [store.get(part.name) for part in store.names()]
    rows = [row for content in found for row in pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()]
    assert sorted(row["sha256"] for row in rows) == sorted(sha256(tiny_sample(index).data) for index in range(20))


def test_a_killed_service_leaves_whole_files_and_loses_only_what_was_not_written(home: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    samples = [tiny_sample(index) for index in range(40)]
    settings = {"CHESTCT_INFERENCE_LOG": str(log), "CHESTCT_INFERENCE_LOG_SECONDS": "1"}
    with serve(home, "", CHESTCT_WORKERS="1", **settings) as server:
        ask_all(server, [(raw, sample) for sample in samples[:20]])
        wait_until(lambda: len(read(log)) == 20, "20 rows")
        ask_all(server, [(raw, sample) for sample in samples[20:]])
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(300)
    digests = [row["sha256"] for row in read(log)]
    assert len(set(digests)) == len(digests)
    assert {sha256(sample.data) for sample in samples[:20]} <= set(digests)
    assert set(digests) <= {sha256(sample.data) for sample in samples}


def test_the_service_answers_and_counts_while_the_log_can_t_be_written(home: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    settings = {"CHESTCT_INFERENCE_LOG_SECONDS": "1", "CHESTCT_INFERENCE_LOG_ROWS": "10"}
    with serve(home, "", CHESTCT_WORKERS="1", CHESTCT_INFERENCE_LOG=str(log), **settings) as server:
        log.rmdir()
        log.write_text("in the way")

        async def ask() -> None:
            async with connect(server.url, server.grpc) as clients:
                for index in range(40):
                    await raw(clients, tiny_sample(index))

        asyncio.run(ask())
        text = httpx.get(f"{server.url}/metrics", timeout=300).text
        assert "chestct_inference_log_rows_dropped_total 30.0" in text.splitlines()
        wait_until(lambda: "some may be dropped" in server.log.read_text(), "a line about the failure")
        stop(server)
    lines = server.log.read_text().splitlines()
    assert sum("the inference log" in line for line in lines) == 2  # the failure, and the rows lost at the end


def test_on_a_full_and_on_a_read_only_disk_the_service_answers_and_writes_when_it_can(
    home: Path, small_disk: SmallDisk
) -> None:
    log, outside = small_disk.folder / "log", small_disk.outside / "log"
    settings = {"CHESTCT_INFERENCE_LOG_SECONDS": "1", "CHESTCT_INFERENCE_LOG_ROWS": "10"}
    python = small_disk.command(sys.executable, cwd=ROOT)
    with serve(home, "", python=python, CHESTCT_WORKERS="1", CHESTCT_INFERENCE_LOG=str(log), **settings) as server:

        def ask(samples: range) -> None:
            ask_all(server, [(raw, tiny_sample(index)) for index in samples])

        def lines() -> list[str]:
            found = map(
                json.loads, filter(lambda line: "the inference log" in line, server.log.read_text().splitlines())
            )
            return [line["message"] for line in found]

        ask(range(5))
        wait_until(lambda: len(read(outside)) == 5, "5 rows")
        (first,) = small_disk.files()
        small_disk.fill()
        ask(range(5, 35))  # each gets its answer, and 10 rows wait
        wait_until(lambda: len(lines()) == 1, "a line about the failure")
        text = httpx.get(f"{server.url}/metrics", timeout=300).text
        assert "chestct_inference_log_rows_dropped_total 20.0" in text.splitlines()
        assert small_disk.files() == [first]
        small_disk.free()
        wait_until(lambda: len(read(outside)) == 15, "the rows that waited")
        small_disk.remount("ro")
        ask(range(35, 40))
        wait_until(lambda: len(lines()) == 3, "a line about the next failure")
        small_disk.remount("rw")
        wait_until(lambda: len(read(outside)) == 20, "the rows that waited")
        stop(server)
        found = lines()
    assert "No space left on device" in found[0]
    assert "Read-only file system" in found[2]
    assert found[1] == found[3] == f"the inference log is written again: {log}"
    assert len(found) == 4


def test_a_place_that_can_t_be_used_ends_the_start_with_one_line(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    http, grpc = map(str, free_ports(2))
    settings = {"CHESTCT_WORKERS": "1", "CHESTCT_GRPC_PORT": grpc, "CHESTCT_INFERENCE_LOG": f"{tmp_path}/file/log"}
    done = bentoml("serve", ".", "--port", http, home=home, **settings)
    assert done.returncode == 1
    assert f"{tmp_path}/file/log" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr
