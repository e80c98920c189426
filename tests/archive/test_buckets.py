"""Buckets, with a real S3 server on this machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from archive import checks, plans
from archive.models import Model
from archive.sources import MOST_BYTES, find_source
from chestct.buckets import Object, Store
from chestct.file_errors import CannotGoOn, FileError
from tests.archive.kinds import png_of
from tests.server import ROOT


def test_a_put_happens_once(bucket: str) -> None:
    store = Store(bucket)
    assert store.get("parts/a") is None
    assert not store.has("parts/a")
    assert store.put_if_absent("parts/a", b"first")
    assert not store.put_if_absent("parts/a", b"second")
    assert store.has("parts/a")
    assert store.get("parts/a") == b"first"
    store.put("parts/a", b"third")
    assert [(found.name, found.size) for found in store.names("parts")] == [("parts/a", 5)]


def test_files_are_read_as_they_were_planned(bucket: str) -> None:
    store = Store(bucket)
    for name in ("a b.png", "c/d.png", "e.png", "large.png"):
        store.put(name, bytes(MOST_BYTES + 1) if name == "large.png" else name.encode())
    source = find_source(bucket)
    first, second, third, large = source.files()
    assert [source.read(first), source.read(second)] == [b"a b.png", b"c/d.png"]
    store.put("e.png", b"other content")
    codes = []
    for file in (third, large, Object("absent.png", -1, "")):
        with pytest.raises(FileError) as caught:
            source.read(file)
        codes.append(caught.value.code)
    assert codes == ["file_changed", "file_too_large", "file_missing"]


def test_a_listing_may_name_objects_of_a_bucket(bucket: str, tmp_path: Path) -> None:
    Store(bucket).put("a.png", b"in the bucket")
    (tmp_path / "b.png").write_bytes(b"here")
    (tmp_path / "list.txt").write_text(f"{bucket}/a.png\nb.png\n{bucket}/absent.png\n")
    source = find_source(str(tmp_path / "list.txt"))
    remote, local, absent = source.files()
    assert [source.read(remote), source.read(local)] == [b"in the bucket", b"here"]
    with pytest.raises(FileError, match="the file is not there"):
        source.read(absent)


def test_an_archive_in_a_bucket_is_scored_into_a_bucket(bucket: str, model: Model) -> None:
    store = Store(f"{bucket}/in")
    for number in range(40):
        store.put(f"{number:03}.png", png_of(number % 4))
    store.put("broken.png", b"no picture")
    call = [sys.executable, "-m", "archive", "score", f"{bucket}/in", f"{bucket}/out"]
    with_model = [*call, "--model", str(model.graph.parent)]
    done = subprocess.run(with_model, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("41 files, 41 rows: 0 missing, 0 twice, 0 of no planned file\n")
    plan = plans.load(Store(f"{bucket}/out"))
    result = checks.check(plan, f"{bucket}/out")
    assert (plan.kind, plan.root, result.complete, result.rows) == ("bucket", f"{bucket}/in", True, 41)
    assert result.errors == {"undecodable_image": 1}


def test_a_bucket_that_is_not_there_ends_the_command(bucket: str) -> None:
    with pytest.raises(CannotGoOn, match="can't list s3://absent"):
        list(find_source("s3://absent/prefix").files())
    with pytest.raises(CannotGoOn, match=r"can't write s3://absent/prefix/a"):
        Store("s3://absent/prefix").put_if_absent("a", b"x")


def test_a_server_that_is_gone_ends_the_run_instead_of_making_error_rows(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(bucket).put("a.png", b"x")
    (planned,) = find_source(bucket).files()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_RETRIES", "0")
    with pytest.raises(CannotGoOn, match="can't read s3://scans/"):
        find_source(bucket).read(planned)
