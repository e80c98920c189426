"""The model of an archive: a stored one, a folder, that of the bento, or the released one."""

import shutil
from pathlib import Path

import pytest

from archive import models
from archive.models import Model
from chestct import store
from chestct.file_errors import CannotGoOn


def test_a_folder_is_a_model(model: Model) -> None:
    assert models.find(str(model.graph.parent)) == model


def test_a_changed_folder_is_refused(model: Model, tmp_path: Path) -> None:
    folder = shutil.copytree(model.graph.parent, tmp_path / "model")
    with (folder / "model.onnx").open("ab") as graph:
        graph.write(b"x")
    with pytest.raises(CannotGoOn, match=r"no model: .*model\.onnx was changed after it was made"):
        models.find(str(folder))


@pytest.mark.usefixtures("model_store")
def test_by_default_it_is_the_model_that_the_service_would_serve(model: Model) -> None:
    assert models.find(None).tag == store.tag_of(models.RELEASE / store.CARD)  # from an empty store
    tag = store.import_model(model.graph.parent)
    assert models.find(None).tag == tag == model.tag  # the newest of a training here
    assert models.find_planned(tag, None).tag == tag
    with pytest.raises(CannotGoOn, match=r"no model 'chestct:absent' in the BentoML store"):
        models.find_planned("chestct:absent", None)
    with pytest.raises(CannotGoOn, match=rf"for the model chestct:absent, and {tag} is {tag}"):
        models.find_planned("chestct:absent", tag)


def test_in_a_bento_it_is_the_bentos(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(model.graph.parent, tmp_path / "models" / "chestct" / "abc")
    monkeypatch.setattr(models, "ROOT", tmp_path / "src")
    (tmp_path / "bento.yaml").touch()
    assert models.find(None).graph == tmp_path / "models" / "chestct" / "abc" / "model.onnx"
