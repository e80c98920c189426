"""The command that compares a folder of images, or an inference log, with the reference in the model's card."""

import os
import re
import signal
import socket
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
from PIL import Image

from chestct import tables
from chestct.buckets import Store
from chestct.card import DISCLAIMER, ModelCard
from chestct.digests import sha256_of
from chestct.image import decode, encode_png
from chestct.prediction import decide
from chestct.store import CARD, GRAPH
from chestct.watched import EDGES, Scores, measure
from pipeline.core import paths
from pipeline.core.errors import DataError, StageError
from pipeline.core.params import Params
from pipeline.drift import drift, main
from pipeline.foreign import inference_log
from pipeline.judging.reference import count_reference
from serving.inference_log.rows import Noted, to_parquet, to_row
from tests.graphs import tiny_model, tiny_picture, tiny_scores
from tests.server import ROOT

PARAMS = Params.read(ROOT / "params.yaml")


def picture(number: int) -> np.ndarray:
    """A picture of the class `number` modulo 4, with marks, so that scores differ."""
    return tiny_picture(number % 4, marks=number % 7)[:, :, 0]


def facts_of(levels: np.ndarray, card: ModelCard) -> dict[str, float]:
    decoded = decode(encode_png(levels), card.input)
    probabilities, ood_score, chest_ct = tiny_scores(decoded.pixels)
    return measure(decoded.facts, Scores(probabilities, ood_score, card.thresholds.ood_limit, chest_ct))


@pytest.fixture
def model(workspace: Path) -> str:
    """A model whose reference is 120 of its pictures, each of a scan of its own."""
    card = tiny_model(workspace / "model")
    rows = [facts_of(picture(number), card) for number in range(120)]
    reference = count_reference({name: np.array([row[name] for row in rows]) for name in EDGES}, np.arange(120))
    card.model_copy(update={"reference": reference}).write(workspace / "model" / CARD)
    return str(workspace / "model")


def write_pictures(folder: Path, *, windowed: bool = False, named: bool = False) -> Path:
    """Write 40 pictures like the reference's, or twice as light."""
    folder.mkdir()
    for number in range(40):
        levels = picture(number)
        shown = np.minimum(2 * levels.astype(int), 255).astype(np.uint8) if windowed else levels
        Image.fromarray(shown).save(folder / (f"P{number % 20}_{number}.png" if named else f"{number}.png"))
    return folder


def test_images_like_the_reference_have_not_drifted(
    workspace: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(workspace / "feed")
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    (folder / "broken.png").write_bytes(b"no picture either")
    drift(PARAMS, str(folder), model)
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[1:10]] == list(EDGES)
    assert shown.count("as before") == len(EDGES)
    assert re.search(r"^input_tissue +40 +0\.000 +1\.0000 ", shown, re.MULTILINE)
    assert "40 images of unknown patients" in shown
    assert "Left out: 1 files that can't be read." in shown
    assert DISCLAIMER in shown
    assert max(map(len, shown.splitlines())) <= 100
    with Image.open(paths.DRIFT) as drawn:
        assert drawn.width > 1000


def test_another_window_has_drifted_with_exit_code_3(
    workspace: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_pictures(workspace / "feed", windowed=True, named=True)
    (workspace / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.setattr("sys.argv", ["drift", str(folder), "--model", model])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 3
    assert re.search(r"^input_tissue +40 +[\d.]+ +0\.0001  DRIFT +\S.*: 100%, 0%$", said.out, re.MULTILINE)
    assert re.search(r"^input_side +40 +0\.000 +1\.0000  as before ", said.out, re.MULTILINE)
    assert "40 images of 20 patients, by the files' names." in said.out
    (*_, line) = said.err.splitlines()
    assert re.fullmatch(r"drift: input_tissue.* drifted; docs/how-to/watch-for-drift.md says what to do", line)
    assert (ROOT / "docs/how-to/watch-for-drift.md").is_file()


def write_log(
    model: str, folder: Path, *, light: bool = False, digest: str | None = None, day: str = "2027-01-15"
) -> Path:
    """Write the log that the service would write for 40 pictures."""
    card = ModelCard.read(Path(model, CARD))
    if digest:
        card = card.model_copy(update={"lineage": card.lineage.model_copy(update={"model_sha256": digest})})
    rows = []
    for number in range(40):
        levels = np.minimum(2 * picture(number).astype(int), 255).astype(np.uint8) if light else picture(number)
        decoded = decode(encode_png(levels), card.input)
        probabilities, ood_score, chest_ct = tiny_scores(decoded.pixels)
        answer = decide(
            card, probabilities, ood_score, chest_ct, decoded.facts, request_id=str(number), model="chestct:x"
        )
        rows.append(to_row(card, Noted(1.8e9 + number, str(number), "http", 0, "ab" * 32, decoded.facts, answer)))
    (folder / f"date={day}").mkdir(parents=True, exist_ok=True)
    place = folder / f"date={day}" / f"{digest or 'own'}.parquet"
    place.write_bytes(to_parquet(card, rows))
    return folder


def test_a_log_is_read_as_the_images_would_be(workspace: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ModelCard.read(Path(model, CARD)).lineage.model_sha256 == sha256_of(Path(model, GRAPH))
    drift(PARAMS, str(write_pictures(workspace / "feed")), model)
    from_images = capsys.readouterr().out.splitlines()
    log = write_log(model, workspace / "log")
    write_log(model, log, light=True, digest="cd" * 32)
    drift(PARAMS, str(log), model)
    from_log = capsys.readouterr().out.splitlines()
    assert from_log[:10] == from_images[:10]
    assert "Left out: 40 rows of other models." in from_log


def test_a_log_of_lighter_pictures_has_drifted(workspace: Path, model: str) -> None:
    with pytest.raises(StageError, match="input_tissue") as caught:
        drift(PARAMS, str(write_log(model, workspace / "log", light=True)), model)
    assert caught.value.exit_code == 3


def upload(log: Path, bucket: str) -> Store:
    store = Store(bucket)
    for part in log.rglob("*.parquet"):
        store.put(part.relative_to(log).as_posix(), part)
    return store


def test_a_log_in_a_bucket_is_read_as_in_a_folder(
    workspace: Path, model: str, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(model, workspace / "log")
    for number in range(20):  # more parts than are asked for at the same time
        write_log(model, log, day=f"2027-02-{number + 1:02}", digest="cd" * 32)
    write_log(model, log, day="2027-03-01")
    upload(log, bucket).put("date=2027-01-15/README", b"no part")
    drift(PARAMS, str(log), model)
    from_folder = capsys.readouterr().out
    drift(PARAMS, bucket, model)
    said = capsys.readouterr()
    assert said.out == from_folder
    assert "80 images of unknown patients" in said.out
    assert "Left out: 800 rows of other models." in said.out
    assert "reading the log: 22part" in said.err


@pytest.mark.parametrize("in_bucket", [False, True], ids=["folder", "bucket"])
def test_since_reads_later_days_alone(
    workspace: Path, model: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], in_bucket: bool
) -> None:
    log = write_log(model, workspace / "log")
    write_log(model, log, day="2027-01-16")
    (log / "date=2027-01-14").mkdir()
    (log / "date=2027-01-14" / "broken.parquet").write_bytes(b"not read")
    (log / "without-a-day.parquet").write_bytes(b"not read")
    place = str(log)
    if in_bucket:
        place = request.getfixturevalue("bucket")
        upload(log, place)
    drift(PARAMS, place, model, date(2027, 1, 16))
    assert "40 images of unknown patients" in capsys.readouterr().out
    drift(PARAMS, place, model, date(2027, 1, 15))
    assert "80 images of unknown patients" in capsys.readouterr().out
    with pytest.raises(DataError, match="no inference log of 2027-01-17 or later"):
        drift(PARAMS, place, model, date(2027, 1, 17))


def test_a_bucket_that_can_t_be_read_ends_in_one_line(
    workspace: Path, model: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(place: str) -> str:
        with pytest.raises(DataError) as caught:
            drift(PARAMS, place, model)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (workspace / "broken.parquet").write_bytes(b"broken")
    upload(workspace, f"{bucket}/broken")
    assert refused("s3://absent/log") == "can't list s3://absent/log: there is no such bucket"
    assert refused(f"{bucket}/empty") == f"{bucket}/empty: no inference log (*.parquet)"
    assert refused("http://host/log") == (
        "http://host/log: expected a folder, or the URL of a bucket with s3://, gs://, az://"
    )
    assert refused(f"{bucket}/broken").startswith(f"{bucket}/broken/broken.parquet: can't be read as Parquet: ")
    monkeypatch.setattr(inference_log, "_MOST_BYTES", 5)
    assert refused(f"{bucket}/broken") == f"{bucket}/broken/broken.parquet: expected at most 5 bytes"
    monkeypatch.setattr(inference_log, "_RETRY_FOR", timedelta(0))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert refused(f"{bucket}/log").startswith(f"{bucket}/log: no keys are set, such as AWS_ACCESS_KEY_ID and")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert refused(f"{bucket}/log").startswith(f"can't list {bucket}/log: no keys are set, such as AWS_ACCESS_KEY_ID")


def test_ctrl_c_does_not_wait_for_a_bucket_that_does_not_answer(workspace: Path, model: str) -> None:
    (workspace / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        keys = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "PYTHONPATH": str(ROOT),
        }
        # A shell's job in the background ignores SIGINT, and so would its child.
        command = ["env", "--default-signal=INT", sys.executable, "-m", "pipeline.drift", "s3://scans/log"]
        with subprocess.Popen(
            [*command, "--model", model],
            cwd=workspace,
            env={**os.environ, **keys},
            stdout=PIPE,
            stderr=PIPE,
            text=True,
        ) as asked:
            asking, _ = silent.accept()
            with asking:
                asked.send_signal(signal.SIGINT)
                shown, said = asked.communicate(timeout=300)
                assert asking.recv(3) == b"GET"  # the connection is open until now
    assert (asked.returncode, shown, said) == (130, "", "\ndrift: stopped\n")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no pictures, and no inference log"),
        ({"notes.txt": b"words"}, "no pictures, and no inference log"),
        ({"1.png": b"broken"}, "none of the 1 files is an image that can be read"),
        ({"1.parquet": b"broken"}, "can't be read as Parquet"),
        ({f"{number}.png": encode_png(picture(number)) for number in range(9)}, "9 images say too little"),
    ],
    ids=["empty", "no images", "broken image", "broken log", "too few"],
)
def test_what_can_t_be_judged_ends_with_exit_code_2(
    workspace: Path, model: str, files: dict[str, bytes], words: str
) -> None:
    folder = workspace / "feed"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(StageError, match=words) as caught:
        drift(PARAMS, str(folder), model)
    assert caught.value.exit_code == 2


def test_a_table_of_something_else_and_a_log_of_another_model_are_named(workspace: Path, model: str) -> None:
    other = workspace / "other.parquet"
    other.write_bytes(tables.to_parquet(tables.to_batch([{"a": 1}], tables.schema({"a": tables.COUNT}))))
    with pytest.raises(DataError, match="this is no inference log, for it has no column chest_ct"):
        drift(PARAMS, str(other), model)
    with pytest.raises(DataError, match="no row is of this model"):
        drift(PARAMS, str(write_log(model, workspace / "log", digest="cd" * 32)), model)
    with pytest.raises(DataError, match="the folder can't be read"):
        drift(PARAMS, str(workspace / "gone"), model)


def test_a_card_without_a_reference_says_so_in_one_line(workspace: Path) -> None:
    tiny_model(workspace / "old")
    with pytest.raises(StageError, match="its card has no reference to compare with") as caught:
        drift(PARAMS, str(write_pictures(workspace / "feed")), str(workspace / "old"))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
