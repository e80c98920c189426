"""The command that compares a folder of images, or an inference log, with the reference in the model's card."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chestct import tables
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
    drift(PARAMS, folder, model)
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


def write_log(model: str, folder: Path, *, light: bool = False, digest: str | None = None) -> Path:
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
    (folder / "date=2027-01-15").mkdir(parents=True, exist_ok=True)
    place = folder / "date=2027-01-15" / f"{digest or 'own'}.parquet"
    place.write_bytes(to_parquet(card, rows))
    return folder


def test_a_log_is_read_as_the_images_would_be(workspace: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ModelCard.read(Path(model, CARD)).lineage.model_sha256 == sha256_of(Path(model, GRAPH))
    drift(PARAMS, write_pictures(workspace / "feed"), model)
    from_images = capsys.readouterr().out.splitlines()
    log = write_log(model, workspace / "log")
    write_log(model, log, light=True, digest="cd" * 32)
    drift(PARAMS, log, model)
    from_log = capsys.readouterr().out.splitlines()
    assert from_log[:10] == from_images[:10]
    assert "Left out: 40 rows of other models." in from_log


def test_a_log_of_lighter_pictures_has_drifted(workspace: Path, model: str) -> None:
    with pytest.raises(StageError, match="input_tissue") as caught:
        drift(PARAMS, write_log(model, workspace / "log", light=True), model)
    assert caught.value.exit_code == 3


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
        drift(PARAMS, folder, model)
    assert caught.value.exit_code == 2


def test_a_table_of_something_else_and_a_log_of_another_model_are_named(workspace: Path, model: str) -> None:
    other = workspace / "other.parquet"
    other.write_bytes(tables.to_parquet(tables.to_batch([{"a": 1}], tables.schema({"a": tables.COUNT}))))
    with pytest.raises(DataError, match="this is no inference log, for it has no column chest_ct"):
        drift(PARAMS, other, model)
    with pytest.raises(DataError, match="no row is of this model"):
        drift(PARAMS, write_log(model, workspace / "log", digest="cd" * 32), model)
    with pytest.raises(DataError, match="the folder can't be read"):
        drift(PARAMS, workspace / "gone", model)


def test_a_card_without_a_reference_says_so_in_one_line(workspace: Path) -> None:
    tiny_model(workspace / "old")
    with pytest.raises(StageError, match="its card has no reference to compare with") as caught:
        drift(PARAMS, write_pictures(workspace / "feed"), str(workspace / "old"))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
