"""Values that are given to a make command reach the program unchanged, whatever characters they hold."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from pipeline.override import override
from tests.server import ROOT

TEXTS = [
    "it's here",
    "two  blanks",
    "a$b",
    "$(id)",
    "${HOME}",
    "a`id`b",
    'a "quoted" one',
    "a#b",
    "a,b",
    "[a]{b}(c)",
    "(a",
    "b)",
    "back\\slash\\",
    "\\'",
    "a;b&c|d>e<f",
    "*?~!%",
    "--help",
    "null",
    "a=b:c",
    "größe",
    os.fsdecode(b"gr\xf6\xdfe"),
]
STUB = """#!{python}
import json, os, sys
if sys.argv[1:3] == ["-m", "pipeline.override"]:
    sys.path.insert(0, {root!r})
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
if call[:3] == ["python", "-m", "chestct.interrupts"]:
    call = call[3:]
names = "CHESTCT_GRPC_PORT", "CHESTCT_MODEL", "IMAGE", "PYTHONDONTWRITEBYTECODE"
call = call, {{name: os.environ[name] for name in names if name in os.environ}}
with open("calls", "a") as file:
    file.write(json.dumps(call) + "\\n")
print("stub")
"""

LIBRARIES = (
    *("bentoml build", "bentoml export", "bentoml models", "bentoml serve", "dvc exp run", "dvc repro", "mlflow ui"),
    *("kubernetes_validate -k", "mkdocs build", "mypy\n", "pytest -", "yamllint -"),
)
"""How the commands of libraries begin that run for seconds and would show a traceback at Ctrl-C."""

Make = Callable[..., list[tuple[list[str], dict[str, str]]]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Run the project's Makefile with programs that only record their calls."""
    folder = tmp_path / "it's a $clone"
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (folder / "archive").mkdir()
    (folder / "archive" / "launch.sh").touch()  # older than the program that stands for its copy
    stub = programs / "stub"
    stub.write_text(STUB.format(python=sys.executable, root=str(ROOT)), encoding="utf-8")
    stub.chmod(0o755)
    for name in ("python", "dvc", "bentoml", "docker", "git", "chestct"):
        shutil.copy(stub, programs / name)
    (folder / "requirements").mkdir()
    (folder / "requirements" / "development.txt").touch()
    (folder / ".venv" / ".development").touch()

    def run(*arguments: str) -> list[tuple[list[str], dict[str, str]]]:
        command = ["make", "--file", str(ROOT / "Makefile"), *arguments]
        inherited = {
            name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "CHESTCT_GRPC_PORT")
        }
        environment = {**inherited, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        calls = folder / "calls"
        lines = calls.read_text(encoding="utf-8").splitlines()
        calls.unlink()
        return [tuple(json.loads(line)) for line in lines]

    return run


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")


@pytest.mark.parametrize("text", TEXTS)
def test_data_reaches_params_as_typed(make: Make, params: Path, text: str) -> None:
    (trained, _), (stored, _) = make("train", f"DATA={text}")
    assert trained[:3] == ["dvc", "exp", "run"]
    assert trained[3::2] == ["-S", "-S"]
    apply_overrides(params, trained[4::2])
    data = yaml.safe_load(params.read_text(encoding="utf-8"))["data"]
    assert (data["source"], data["path"]) == ("local", text)
    assert stored == ["python", "-m", "pipeline.store"]


def test_without_data_the_parameters_stay(make: Make) -> None:
    assert [call for call, _ in make("train")] == [["dvc", "repro"], ["python", "-m", "pipeline.store"]]


@pytest.mark.parametrize("text", ["".join(TEXTS), "--help", "$(id)"])
def test_every_other_value_reaches_its_program_as_typed(make: Make, text: str) -> None:
    ((stored, _),) = make("store", f"RELEASE={text}")
    assert stored == ["python", "-m", "pipeline.store", f"--release={text}"]
    _, (served, environment) = make("serve", f"PORT={text}", f"GRPC_PORT={text}")
    assert served[:4] == ["bentoml", "serve", "--port", text]
    assert environment == {"CHESTCT_GRPC_PORT": text}
    *_, (tested, environment) = make("test-image", f"IMAGE={text}")
    assert tested == ["pytest", "-s", "--confcutdir", "tests/container", "tests/container"]
    assert environment == {"IMAGE": text}
    *_, (rolled, _) = make("rollout", f"IMAGE={text}", f"NEXT={text}", "builder=docker")
    assert rolled == ["python", "-m", "load_tests.rollout", "--tool=docker", f"--next={text}", "--", text]
    *_, (loaded, _) = make("load", f"SCENARIO={text}", f"USERS={text}", f"SECONDS={text}")
    assert loaded[3:] == [f"--scenario={text}", f"--users={text}", f"--seconds={text}"]
    *_, (tuned, _) = make("tune", f"P99={text}")
    assert tuned[3:] == [f"--p99={text}"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_folder_of_slices_reaches_its_command_as_typed(make: Make, text: str) -> None:
    ((asked, _),) = make("external", f"DATA={text}")
    assert asked == ["python", "-m", "pipeline.external", "--", text]
    ((compared, _),) = make("drift", f"DATA={text}", f"MODEL={text}", f"SINCE={text}")
    assert compared == ["python", "-m", "pipeline.drift", f"--model={text}", f"--since={text}", "--", text]
    ((checked, _),) = make("site", f"DATA={text}", f"MODEL={text}", "ADAPT=1")
    assert checked == ["python", "-m", "pipeline.site", "--adapt", f"--model={text}", "--", text]


def test_serve_follows_mlflows_champion_if_it_is_asked_to(make: Make) -> None:
    (stored, _), (checked, named), (served, follows) = make("serve", "MODEL=champion")
    assert stored == ["python", "-m", "pipeline.store", "--champion"]
    assert checked == ["python", "-m", "serving.ensure_model"]
    assert served[:2] == ["bentoml", "serve"]
    assert (named["CHESTCT_MODEL"], follows["CHESTCT_MODEL"]) == ("stub", "stub"), "the last line that the store prints"


def test_what_python_compiles_is_kept_for_the_next_start(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    for _, environment in make("serve"):
        assert "PYTHONDONTWRITEBYTECODE" not in environment


@pytest.mark.parametrize("command", LIBRARIES)
def test_ctrl_c_ends_the_command_of_a_library_in_one_line(command: str) -> None:
    lines = (
        line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines(keepends=True) if line[0] != "#"
    )
    runs = [line for line in lines if command in line]
    assert runs
    for line in runs:
        assert line.count(command) == line.count(f"$(calmly) {command}"), line


@pytest.mark.parametrize("command", ["drift", "external", "site"])
def test_a_check_without_a_folder_says_how_to_name_one(command: str) -> None:
    done = subprocess.run(
        ["make", "-o", ".venv/.development", "-o", ".venv/.training", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"error: name a folder of slices: make {command} DATA=folder"


def test_bento_and_image_are_labelled_with_the_version_that_the_package_says(make: Make) -> None:
    ask = ["python", "-c", "import chestct; print(chestct.__version__)"]
    calls = [call for call, _ in make("image", "IMAGE=chestct:test", "builder=docker")]
    assert calls.count(ask) == 2
    assert ["bentoml", "build", "--label", "version=stub"] in calls  # the recorder answers "stub"
    (built,) = (call for call in calls if call[:2] == ["docker", "build"])
    assert "org.opencontainers.image.version=stub" in built
    assert "org.opencontainers.image.source=https://github.com/chestct/chestct" in built


def test_a_bento_needs_no_more_packages_than_serve_has_installed(make: Make, tmp_path: Path) -> None:
    (clone,) = tmp_path.glob("it's*")
    (clone / "requirements/development.txt").rename(clone / "requirements/serving.txt")
    (clone / ".venv/.development").rename(clone / ".venv/.serving")
    calls = [call for call, _ in make("bento")]
    assert [call[:2] for call in calls if call[0] == "bentoml"] == [["bentoml", "build"], ["bentoml", "export"]]
    assert not [call for call in calls if "pip" in call]


def test_a_fork_s_image_is_linked_to_its_own_sources(make: Make) -> None:
    calls = [call for call, _ in make("image", "builder=docker", "SOURCE=https://example.org/a$b")]
    (built,) = (call for call in calls if call[:2] == ["docker", "build"])
    assert "org.opencontainers.image.source=https://example.org/a$b" in built


@pytest.mark.parametrize("text", ["\\${seed}", "\\\\${seed}", "'${seed}", "a}${", "\\\\'", "a\nb", "a\n", ""])
def test_an_override_is_the_text_and_nothing_else(params: Path, text: str) -> None:
    apply_overrides(params, [override("data.path", text)])
    assert yaml.safe_load(params.read_text(encoding="utf-8"))["data"]["path"] == text
