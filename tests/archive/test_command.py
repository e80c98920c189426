"""The command as a person types it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from archive import command
from archive.models import Model
from chestct import __version__
from chestct.card import DISCLAIMER
from tests.archive.conftest import Fill
from tests.server import ROOT
from tests.small_disk import SmallDisk


@pytest.fixture
def folder(tmp_path: Path, fill: Fill) -> Path:
    fill(tmp_path / "in", 30)
    return tmp_path / "in"


@pytest.mark.usefixtures("tiny_store")
def test_one_command_plans_runs_and_checks(folder: Path, tmp_path: Path) -> None:
    """The launcher is in the clone's environment, and runs that clone's code from any folder."""
    launcher = tmp_path / "a clone" / ".venv" / "bin" / "chestct"
    launcher.parent.mkdir(parents=True)
    shutil.copy(ROOT / "archive" / "launch.sh", launcher)
    python = launcher.with_name("python")
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    for name in ("archive", "chestct"):
        (tmp_path / "a clone" / name).symlink_to(ROOT / name)
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "__init__.py").touch()  # what lies in the working folder does not hide the package
    call = [str(launcher), "score", "in", "out", "--csv", "table.csv"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "30 files, 30 rows: 0 missing, 0 twice, 0 of no planned file"
    assert done.stdout.splitlines()[-1] == DISCLAIMER
    assert done.stderr.splitlines()[0].startswith("30 files in 2 parts, for the model chestct:")
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 31
    again = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert again.stdout.splitlines()[:-2] == done.stdout.splitlines()[:-2]


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "archive", *arguments]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, **options)  # type: ignore[call-overload,no-any-return]


def test_predict_says_by_its_status_if_a_file_has_no_answer(model: Model, folder: Path) -> None:
    with_model = ("--model", str(model.graph.parent))
    good = str(folder / "00001.png")
    assert run("predict", good, *with_model).returncode == 0
    both = run("predict", good, str(folder / "broken.png"), *with_model)
    assert (both.returncode, both.stdout.splitlines()[-1]) == (1, f"{model.tag}. {DISCLAIMER}")
    assert json.loads(run("predict", good, "--json", *with_model).stdout)["disclaimer"] == DISCLAIMER
    assert run("predict", good, "--csv", *with_model).stdout.startswith("file,sha256,error,")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("score", "absent", "out"), "error: absent: no such folder, zip or listing"),
        (("score", "run", "absent"), "error: absent: no such folder; `chestct score plan IN absent` makes it"),
        (("score", "check", "tests"), "error: tests has no plan; `chestct score plan IN tests` makes it"),
        (("predict", "a.png", "--model", "chestct:absent"), "error: no model: no model 'chestct:absent' in the"),
    ],
)
def test_bad_input_ends_in_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str) -> None:
    assert command.main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(words)
    assert "goes on" not in line


@pytest.mark.parametrize(
    "arguments",
    [
        *((), ("score",), ("score", "run"), ("predict",), ("predict", "a", "--json", "--csv")),
        *(("score", "run", "out", "--shard", shard) for shard in ("4/4", "-1/4", "1", "a/b", "0/0")),
        ("score", "run", "out", "--processes", "0"),
    ],
)
def test_a_wrong_call_ends_with_the_usage(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(list(arguments))
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: chestct")


@pytest.mark.parametrize("arguments", [("--help",), ("predict", "--help"), ("score", "--help"), ("score", "run", "-h")])
def test_help_says_that_it_is_no_medical_device(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit):
        command.main(list(arguments))
    assert DISCLAIMER in " ".join(capsys.readouterr().out.split())


def test_the_version_is_the_projects(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


def test_a_reader_that_has_seen_enough_ends_it_quietly(model: Model, folder: Path) -> None:
    files = " ".join(f"{folder}/0000{number}.png" for number in range(9))
    call = f"{sys.executable} -m archive predict {files} --model {model.graph.parent} | true"
    done = subprocess.run(["sh", "-c", call], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.stderr == ""


def test_on_a_full_disk_each_step_ends_in_one_line_and_later_goes_on(
    folder: Path, model: Model, small_disk: SmallDisk
) -> None:
    """The table is on the disk, and so is what the command prints."""
    out, of_model = str(small_disk.folder / "out"), ("--model", str(model.graph.parent))

    def on_it(*arguments: str, stdout: str = "/dev/null") -> tuple[int, str]:
        shell = ["sh", "-c", 'out=$1 && shift && exec "$@" > "$out"', "sh", stdout, sys.executable, "-m", "archive"]
        call = small_disk.command(*shell, *arguments, cwd=ROOT)
        done = subprocess.run(call, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
        return done.returncode, done.stderr

    no_room = "No space left on device"
    small_disk.fill()
    status, words = on_it("score", str(folder), out, *of_model, stdout="/dev/null")
    assert (status, len(words.splitlines())) == (2, 1)
    assert words.startswith(f"error: can't write {out}/")
    assert no_room in words
    assert small_disk.files() == []

    small_disk.free()
    assert on_it("score", str(folder), out, *of_model)[0] == 0
    before = small_disk.files()
    small_disk.fill()
    for printed in (("score", "check", out), ("predict", str(folder / "00001.png"), "--csv", *of_model)):
        target = small_disk.folder / "printed"
        assert on_it(*printed, stdout=str(target)) == (2, f"error: standard output can't be written: {no_room}\n")
        (small_disk.outside / "printed").unlink()
    assert small_disk.files() == before


def test_a_log_on_a_full_disk_stops_no_run(folder: Path, model: Model, small_disk: SmallDisk, tmp_path: Path) -> None:
    small_disk.fill()
    call = [sys.executable, "-m", "archive", "score", str(folder), str(tmp_path / "out")]
    shell = ["sh", "-c", 'log=$1 && shift && exec "$@" 2> "$log"', "sh", str(small_disk.folder / "log")]
    on_it = small_disk.command(*shell, *call, "--model", str(model.graph.parent), cwd=ROOT)
    done = subprocess.run(on_it, stdout=subprocess.PIPE, text=True, timeout=300, check=False)
    assert done.stdout.splitlines()[0] == "30 files, 30 rows: 0 missing, 0 twice, 0 of no planned file"
    assert done.returncode == 0
