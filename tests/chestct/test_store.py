"""The model store: which model is found, and that a changed or half-stored one never is."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chestct import store
from chestct.card import Adaptation, ModelCard
from tests.graphs import tiny_model
from tests.server import ROOT, environment, model_store_at

Run = Callable[..., list[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Does what each line says, `import=FOLDER` or `find=TAG`, with the store in the folder `home`. Returns answers."""
    tiny_model(tmp_path / "real")
    tiny_model(tmp_path / "drawn", data_source="synthetic")
    tiny_model(tmp_path / "other")
    card = ModelCard.read(tmp_path / "other" / "card.json")
    lineage = card.lineage.model_copy(update={"run_id": "of another run"})
    card.model_copy(update={"lineage": lineage}).write(tmp_path / "other" / "card.json")
    tiny_model(tmp_path / "adapted")
    adapted = Adaptation(base="chestct:0", slices=8, patients=4, data_digest="ab", created="2026-01-01T00:00:00Z")
    lineage = card.lineage.model_copy(update={"adapted": adapted})
    card.model_copy(update={"lineage": lineage}).write(tmp_path / "adapted" / "card.json")

    def answer(line: str) -> str:
        kind, _, value = line.partition("=")
        try:
            if kind == "import":
                return store.import_model(Path(value))
            found = store.find(value or None)
            return f"{found.tag} {found.graph.is_file()} {found.read_card().lineage.data_source}"
        except (ValueError, LookupError) as error:
            return f"{type(error).__name__} {str(error).splitlines()[0]}"

    def run(*lines: str, home: str = "home") -> list[str]:
        models = tmp_path / home / "models"
        models.mkdir(parents=True, exist_ok=True)
        with model_store_at(models):
            return [answer(line) for line in lines]

    return run


def test_the_newest_model_of_real_images_is_found_and_phantoms_only_by_tag(run: Run, tmp_path: Path) -> None:
    real, drawn, other = (f"import={tmp_path / name}" for name in ("real", "drawn", "other"))
    empty, first, phantom, newest, second, newest_again = run("find=", real, drawn, "find=", other, "find=")
    assert empty.startswith("NoModel no model trained on real images")
    assert newest == f"{first} True local"
    assert newest_again == f"{second} True local"
    assert second != first
    assert run(f"find={phantom}") == [f"{phantom} True synthetic"]


def test_a_model_that_was_adapted_to_a_site_is_found_only_by_its_tag(run: Run, tmp_path: Path) -> None:
    real, adapted = (f"import={tmp_path / name}" for name in ("real", "adapted"))
    tag, site, newest, again = run(real, adapted, "find=", adapted)
    assert newest == f"{tag} True local"
    assert site == again != tag
    assert run(f"find={site}") == [f"{site} True local"]


def test_a_model_that_is_the_newest_of_its_kind_already_is_not_stored_again(run: Run, tmp_path: Path) -> None:
    real, drawn, other = (f"import={tmp_path / name}" for name in ("real", "drawn", "other"))
    first, phantom, again, replaced, found, back = run(real, drawn, real, other, "find=", real)
    assert again == back == first
    assert len({first, phantom, replaced}) == 3
    assert found == f"{replaced} True local"
    assert run("find=") == [f"{first} True local"]


def test_a_model_has_the_same_tag_in_every_store(run: Run, tmp_path: Path) -> None:
    (here,) = run(f"import={tmp_path / 'real'}")
    assert run(f"import={tmp_path / 'real'}", home="elsewhere") == [here]


def test_a_missing_tag_is_named(run: Run) -> None:
    (answer,) = run("find=chestct:none")
    assert answer.startswith("NoModel no model 'chestct:none'")


def test_nothing_is_stored_when_the_card_is_broken(run: Run, tmp_path: Path) -> None:
    (tmp_path / "real" / "card.json").write_text("{}", encoding="utf-8")
    broken, empty = run(f"import={tmp_path / 'real'}", "find=")
    assert broken.startswith("ValidationError")
    assert empty.startswith("NoModel")


def test_a_graph_that_its_card_does_not_name_is_not_stored(run: Run, tmp_path: Path) -> None:
    graph = tmp_path / "real" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    refused, empty = run(f"import={tmp_path / 'real'}", "find=")
    assert refused.startswith("Altered")
    assert empty.startswith("NoModel")


def test_a_killed_import_leaves_no_model_and_the_next_one_succeeds(run: Run, tmp_path: Path) -> None:
    killed = f"""
import os, sys, shutil
from pathlib import Path
from chestct import store

copied = []
def copy_and_die(source, target, **options):
    if len(copied) == {{count}}:
        os._exit(9)
    copied.append(copy(source, target))

module, name = {{place}}
copy = getattr(module, name)
setattr(module, name, copy_and_die)
store.import_model(Path({str(tmp_path / "other")!r}))
"""
    (kept,) = run(f"import={tmp_path / 'real'}")
    for place, count in (("(shutil, 'copyfile')", 1), ("(shutil, 'copytree')", 0), ("(Path, 'rename')", 0)):
        code = killed.format(place=place, count=count)
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(tmp_path / "home"), capture_output=True, timeout=300, check=False
        )
        assert done.returncode == 9, done.stderr
        assert [path.name for path in (tmp_path / "home/models/chestct").glob("*/")] == [kept.partition(":")[2]]
    found, imported, then = run("find=", f"import={tmp_path / 'other'}", "find=")
    assert found == f"{kept} True local"
    assert then == f"{imported} True local" != found


def test_part_of_a_model_from_older_code_is_ignored(run: Run, tmp_path: Path) -> None:
    (tag,) = run(f"import={tmp_path / 'real'}")
    stored = tmp_path / "home/models" / tag.replace(":", "/")
    for name, content in (("empty", None), ("torn", "name: chest"), ("nonsense", "labels: ["), ("half", "labels: {}")):
        part = stored.with_name(name)
        part.mkdir()
        if content is not None:
            (part / "model.yaml").write_text(content, encoding="utf-8")
    found, again, torn = run("find=", f"import={tmp_path / 'real'}", "find=chestct:torn")
    assert found == f"{tag} True local"
    assert again == tag
    assert torn.startswith("NoModel no model 'chestct:torn'")


def test_a_store_from_before_digests_were_recorded_is_checked_by_its_tags(run: Run, tmp_path: Path) -> None:
    (tag,) = run(f"import={tmp_path / 'real'}")
    stored = tmp_path / "home/models" / tag.replace(":", "/")
    info = (stored / "model.yaml").read_text(encoding="utf-8")
    lines = [line for line in info.splitlines() if "card_sha256" not in line]
    assert len(lines) == len(info.splitlines()) - 1
    (stored / "model.yaml").write_text("\n".join(lines), encoding="utf-8")
    assert run("find=") == [f"{tag} True local"]
    card = stored / "card.json"
    card.write_text(card.read_text(encoding="utf-8").replace("5eed", "5ee0"), encoding="utf-8")
    (refused,) = run("find=")
    assert refused.startswith(f"AlteredModel {tag} is not served")
    assert f"expected {tag.partition(':')[2]}, found" in refused
