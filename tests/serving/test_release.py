from collections.abc import Iterator
from pathlib import Path

import pytest
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.models import ModelStore

from chestct import store
from chestct.store import CARD
from serving import release
from tests.graphs import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # BentoML's, in pathspec


@pytest.fixture(autouse=True)
def _empty_store(tmp_path: Path) -> Iterator[None]:
    """BentoML reads BENTOML_HOME once a process, so the store itself is replaced."""
    folder = tmp_path / "models"
    folder.mkdir()
    BentoMLContainer.model_store.set(ModelStore(folder))
    yield
    BentoMLContainer.model_store.reset()


def test_an_empty_store_gets_the_released_model_once(tmp_path: Path) -> None:
    tiny_model(tmp_path / "release")
    tag = release.ensure_model(None, tmp_path / "release")
    assert tag == store.find().tag
    assert release.ensure_model(None, tmp_path / "release") == tag


def test_a_stored_real_model_comes_before_the_released_one(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model")
    tag = store.import_model(tmp_path / "model")
    assert release.ensure_model(None, tmp_path / "absent") == tag


def test_a_later_release_takes_the_place_of_an_earlier_one_and_of_nothing_else(tmp_path: Path) -> None:
    for name in ("first", "second", "own"):
        card = tiny_model(tmp_path / name)
        card.model_copy(update={"lineage": card.lineage.model_copy(update={"run_id": name})}).write(
            tmp_path / name / CARD
        )
    first = release.ensure_model(None, tmp_path / "first")
    second = release.ensure_model(None, tmp_path / "second")
    assert first != second == store.find().tag
    assert release.ensure_model(first, tmp_path / "second") == first
    own = store.import_model(tmp_path / "own")
    assert release.ensure_model(None, tmp_path / "first") == own


def test_a_model_of_phantoms_is_served_by_its_tag_alone(tmp_path: Path) -> None:
    tiny_model(tmp_path / "phantoms", data_source="synthetic")
    tiny_model(tmp_path / "release")
    tag = store.import_model(tmp_path / "phantoms")
    assert release.ensure_model(None, tmp_path / "release") != tag
    assert release.ensure_model(tag, tmp_path / "release") == tag


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "absent"),
        ({"CHESTCT_MODEL": "chestct:none"}, "no model 'chestct:none'"),
        ({"CHESTCT_WORKERS": "many"}, "CHESTCT_WORKERS"),
    ],
    ids=["no release", "no such tag", "setting"],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, str],
    words: str,
) -> None:
    monkeypatch.setattr(release, "RELEASE", tmp_path / "absent")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        release.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_broken_release_is_named_and_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "release"
    tiny_model(folder)
    card = folder / CARD
    card.write_text(card.read_text().replace('"normal": "normal"', '"normal": "healthy"', 1))
    monkeypatch.setattr(release, "RELEASE", folder)
    with pytest.raises(SystemExit):
        release.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert "normal: expected one of" in line
    with pytest.raises(store.NoModel):
        store.find()
