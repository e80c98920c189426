"""`make external`: the table of other sources, and the record of each opening."""

import csv
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from chestct.card import DISCLAIMER
from pipeline.core import paths
from pipeline.core.errors import DataError
from pipeline.core.params import Params
from pipeline.external import external, main
from pipeline.foreign.answering import ACCEPTED_CANCER, ACCEPTED_NORMAL, NOT_CHEST_CT, UNFAMILIAR, UNREADABLE
from pipeline.foreign.tally import Tally
from tests.graphs import narrow_picture, tiny_model, tiny_picture, unfamiliar_picture
from tests.server import ROOT

NORMAL = 2


@pytest.fixture
def model(workspace: Path) -> str:
    tiny_model(workspace / "model")
    return str(workspace / "model")


@pytest.fixture
def abroad(workspace: Path) -> Path:
    """Slices of three sources, of which the tiny model makes what their pictures say."""
    folder = workspace / "abroad"
    pictures = {
        "clinic/LUSC/P1_a": tiny_picture(3),
        "clinic/LUSC/P1_b": tiny_picture(3),
        "clinic/LUSC/P2_a": tiny_picture(NORMAL),
        "clinic/LUSC/P3_a": unfamiliar_picture(),
        "screening/normal/Q1_a": tiny_picture(NORMAL),
        "screening/normal/Q2_a": tiny_picture(0),
        "head/not_chest/1": narrow_picture(),
    }
    for name, pixels in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[:, :, 0]).save(folder / f"{name}.png")
    (folder / "head" / "not_chest" / "2.png").write_bytes(b"no picture")
    return folder


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_table_says_what_became_of_each_sources_slices(
    abroad: Path, model: str, write_params: Callable[..., Params], capsys: pytest.CaptureFixture[str]
) -> None:
    external(write_params({"report.bootstrap": 50}), abroad, model)
    tally = Tally.read(paths.EXTERNAL / "tally.json")
    found = {
        (group.source, name): share.count
        for group in tally.groups
        for name, share in group.outcomes.items()
        if share.count
    }
    assert found == {
        ("clinic", ACCEPTED_CANCER): 2,
        ("clinic", ACCEPTED_NORMAL): 1,
        ("clinic", UNFAMILIAR): 1,
        ("screening", ACCEPTED_NORMAL): 1,
        ("screening", ACCEPTED_CANCER): 1,
        ("head", NOT_CHEST_CT): 1,
        ("head", UNREADABLE): 1,
    }
    shown = capsys.readouterr().out
    assert "opened 0 times before" in shown
    assert re.search(
        r"^clinic +cancer patient +4 +3 +accepted as a cancer +2 of 4 \(50\.0 %, .*\(2 squamous_cell_carcinoma\)$",
        shown,
        re.MULTILINE,
    )
    assert re.search(r"slices of cancer patients accepted as normal +1 of 4 \(25\.0 %, ", shown)
    assert "slices of another disease accepted as a cancer  no such slices" in shown
    assert "The normal slices come from another source (screening) than the cancers (clinic)" in shown
    assert "2 slices name no patient" in shown
    assert (
        "not readable: 1 undecodable_image: expected a PNG or JPEG image, got 10 bytes that are none of them" in shown
    )
    assert DISCLAIMER in shown
    with (paths.EXTERNAL / "slices.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert rows["clinic/LUSC/P3_a.png"]["reasons"] == "unfamiliar"
    assert rows["clinic/LUSC/P1_a.png"]["label"] == "squamous_cell_carcinoma"
    assert (
        rows["head/not_chest/2.png"]["problem"]
        == "undecodable_image: expected a PNG or JPEG image, got 10 bytes that are none of them"
    )
    with Image.open(paths.EXTERNAL / "outcomes.png") as picture:
        assert picture.width > 800


def test_each_opening_is_recorded_with_model_and_files(
    abroad: Path, model: str, write_params: Callable[..., Params], capsys: pytest.CaptureFixture[str]
) -> None:
    params = write_params({"report.bootstrap": 10})
    external(params, abroad, model)
    external(params, abroad, model)
    (abroad / "screening" / "normal" / "Q2_a.png").unlink()
    external(params, abroad, model)
    lines = lines_of(paths.EXTERNAL_OPENINGS)
    assert [line["files"] for line in lines] == [8, 8, 7]
    assert lines[0]["data_digest"] == lines[1]["data_digest"] != lines[2]["data_digest"]
    assert len({line["model"] for line in lines}) == 1
    assert "opened 2 times before" in capsys.readouterr().out
    assert Tally.read(paths.EXTERNAL / "tally.json").opening == 3
    ignored = subprocess.run(
        ["git", "check-ignore", paths.EXTERNAL_OPENINGS, paths.EXTERNAL],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ignored.stdout.split() == [str(paths.EXTERNAL)]


def test_what_is_not_known_is_refused_before_anything_is_opened(
    abroad: Path,
    model: str,
    write_params: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (abroad / "mystery").mkdir()
    (abroad / "mystery" / "1.png").touch()
    params = write_params({})
    with pytest.raises(DataError, match="nothing is known of 'mystery'"):
        external(params, abroad, model)
    monkeypatch.setattr("sys.argv", ["external", str(abroad), "--model", model])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("external: ")
    assert not paths.EXTERNAL_OPENINGS.exists()


def test_a_file_of_sources_overrides_what_names_say(
    abroad: Path, model: str, write_params: Callable[..., Params]
) -> None:
    sources = abroad.parent / "sources.yaml"
    sources.write_text("screening/normal: other disease\n", encoding="utf-8")
    external(write_params({"report.bootstrap": 10}), abroad, model, sources)
    tally = Tally.read(paths.EXTERNAL / "tally.json")
    share = tally.key_figures["slices of another disease accepted as a cancer"]
    assert share is not None
    assert (share.count, share.slices) == (1, 2)
    assert tally.separation["all slices"].auroc is None
