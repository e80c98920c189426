"""`python -m serving.ensure_model`: the stored or the released model, or one line that says what is wrong."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from chestct import store
from chestct.card import ModelCard
from chestct.digests import SUMS, sha256_of, write_sums
from chestct.store import CARD, GRAPH
from serving import ensure_model
from tests.graphs import tiny_model

pytestmark = pytest.mark.usefixtures("model_store")


def tiny_release(folder: Path, run_id: str = "5eed") -> Path:
    tiny_model(folder, run_id=run_id)
    write_sums(folder, GRAPH, CARD)
    return folder


def test_an_empty_store_gets_the_released_model_once(tmp_path: Path) -> None:
    tiny_release(tmp_path / "release")
    tag = store.ensure_model(None, tmp_path / "release")
    assert tag == store.find().tag
    assert store.ensure_model(None, tmp_path / "release") == tag


def test_a_stored_real_model_comes_before_the_released_one(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    tag = store.import_model(tmp_path / "model")
    assert store.ensure_model(None, tmp_path / "absent") == tag


def test_a_later_release_takes_the_place_of_an_earlier_one_and_of_nothing_else(tmp_path: Path) -> None:
    for name in ("first", "second", "own"):
        tiny_release(tmp_path / name, run_id=name)
    first = store.ensure_model(None, tmp_path / "first")
    second = store.ensure_model(None, tmp_path / "second")
    assert first != second == store.find().tag
    assert store.ensure_model(first, tmp_path / "second") == first
    own = store.import_model(tmp_path / "own")
    assert store.ensure_model(None, tmp_path / "first") == own


def test_a_model_of_phantoms_is_served_by_its_tag_alone(tmp_path: Path) -> None:
    tiny_model(tmp_path / "phantoms", data_source="synthetic")
    tiny_release(tmp_path / "release")
    tag = store.import_model(tmp_path / "phantoms")
    assert store.ensure_model(None, tmp_path / "release") != tag
    assert store.ensure_model(tag, tmp_path / "release") == tag


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "absent"),
        ({"CHESTCT_MODEL": "chestct:none"}, "no model 'chestct:none'"),
        ({"CHESTCT_WORKERS": "many"}, "CHESTCT_WORKERS"),
    ],
    ids=["no release", "no such tag", "setting"],
)
def test_an_error_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, str],
    words: str,
) -> None:
    monkeypatch.setattr(ensure_model, "RELEASE", tmp_path / "absent")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        ensure_model.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Run the command on the folder `release`, which it must refuse. Returns its one line."""
    monkeypatch.setattr(ensure_model, "RELEASE", tmp_path / "release")

    def run() -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            ensure_model.main()
        assert ended.value.code == 2
        said = capsys.readouterr()
        assert said.out == ""
        (line,) = said.err.splitlines()
        return line

    return run


def test_a_release_whose_card_makes_no_sense_is_named_and_not_stored(
    tmp_path: Path, refused: Callable[[], str]
) -> None:
    folder = tiny_release(tmp_path / "release")
    card = folder / CARD
    card.write_text(card.read_text().replace('"normal": "normal"', '"normal": "healthy"', 1))
    write_sums(folder, GRAPH, CARD)
    assert "normal: expected one of" in refused()
    with pytest.raises(store.NoModel):
        store.find()


@pytest.mark.parametrize("name", [CARD, GRAPH])
@pytest.mark.parametrize("where", ["release", "store"])
def test_a_changed_file_is_refused_in_one_line_with_both_digests(
    tmp_path: Path, model_store: Path, refused: Callable[[], str], name: str, where: str
) -> None:
    folder = tiny_release(tmp_path / "release")
    if where == "store":
        folder = model_store / store.ensure_model(None, folder).replace(":", "/")
    made = sha256_of(folder / name)
    change(folder / name)
    line = refused()
    assert {made, sha256_of(folder / name)} <= set(re.findall(r"\b[0-9a-f]{64}\b", line))
    assert name in line


def change(path: Path) -> None:
    """Flip a bit of a graph, or reverse the classes of a card, which stays valid."""
    if path.name == CARD:
        content = json.loads(path.read_bytes())
        content["classes"].reverse()
        path.write_text(json.dumps(content), encoding="utf-8")
        ModelCard.read(path)
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def test_a_changed_model_of_a_training_does_not_give_way_to_the_release(
    tmp_path: Path, model_store: Path, refused: Callable[[], str]
) -> None:
    tiny_release(tmp_path / "release")
    tiny_model(tmp_path / "own", run_id="own")
    tag = store.import_model(tmp_path / "own")
    change(model_store / tag.replace(":", "/") / GRAPH)
    assert f"`rm -r {model_store / tag.replace(':', '/')}`" in refused()
    shutil.rmtree(model_store / tag.replace(":", "/"))
    assert store.ensure_model(None, tmp_path / "release") != tag


def test_a_release_without_its_digests_is_refused(tmp_path: Path, refused: Callable[[], str]) -> None:
    (tiny_release(tmp_path / "release") / SUMS).unlink()
    assert SUMS in refused()


def test_storing_the_model_again_repairs_a_damaged_copy(tmp_path: Path, model_store: Path) -> None:
    tiny_model(tmp_path / "own")
    tag = store.import_model(tmp_path / "own")
    change(model_store / tag.replace(":", "/") / GRAPH)
    with pytest.raises(store.AlteredModel):
        store.find()
    assert store.import_model(tmp_path / "own") == tag == store.find().tag
