"""Ctrl-C while a command imports or works: one line, and an exit status that is not 0."""

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chestct.interrupts import INTERRUPTED
from load_tests.server import free_ports
from tests.server import ROOT, environment, import_tiny_model
from tests.waiting import wait_until

ELSEWHERE = {
    "benchmarks/peers/flask_peer.py": "another project's server; a benchmark starts it and ends it",
    "benchmarks/peers/litserve_peer.py": "another project's server; a benchmark starts it and ends it",
    "chestct/reader_child.py": "no terminal reaches it: its parent starts it in a session of its own",
    "examples/ray_archive.py": "Ray runs it",
    "examples/spark_archive.py": "Spark runs it",
    "pipeline/override.py": "it imports nothing and ends at once",
}
"""Scripts that no one runs by `python -m` in a terminal, and why."""

INTERRUPT = """
import os, runpy, signal, sys, typing

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in {modules!r}:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""
"""A sitecustomize module that sends SIGINT at the first import of one of these modules."""


def entries() -> list[str]:
    """The paths of all modules of this project that run as a program."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in listed.stdout.split() if "if __name__ ==" in _statements(path)]


def _statements(path: str) -> str:
    """The module's `if` statements, without what is in its texts."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return "\n".join(ast.unparse(node) for node in tree.body if isinstance(node, ast.If))


def imported_by(path: str) -> set[str]:
    """The modules that this one imports at its top, without the hook's own."""
    names: set[str] = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    package = path.partition("/")[0]
    return names - {package, "chestct", "chestct.interrupts"}


def run(folder: Path, before: str, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m` after this source of a sitecustomize module, with these variables too."""
    (folder / "sitecustomize.py").write_text(before, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder), **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "at"),
    [
        ("pipeline.train", "numpy"),
        ("pipeline.train", "tensorflow"),
        ("pipeline.store", "pydantic"),
        ("serving.ensure_model", "bentoml"),
        ("benchmarks.tune", "matplotlib"),
        ("load_tests.run", "psutil"),
        ("archive", "numpy"),
        ("chestct.interrupts bentoml serve", "starlette"),
        ("chestct.interrupts mlflow ui", "sqlalchemy"),
    ],
)
def test_an_interrupt_during_the_imports_of_a_library_ends_in_one_line(tmp_path: Path, command: str, at: str) -> None:
    done = run(tmp_path, INTERRUPT.format(modules=[at]), *command.split())
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "interrupted\n")


@pytest.mark.parametrize("path", sorted({*entries()} - {*ELSEWHERE, "chestct/interrupts.py"}))
def test_an_interrupt_during_the_imports_of_any_command_ends_in_one_line(tmp_path: Path, path: str) -> None:
    module = path.removesuffix(".py").removesuffix("/__main__").replace("/", ".")
    done = run(tmp_path, INTERRUPT.format(modules=sorted(imported_by(path))), module)
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "interrupted\n")


def test_all_that_runs_elsewhere_is_there() -> None:
    assert set(ELSEWHERE) <= set(entries())


def test_the_command_chestct_ends_in_one_line_while_it_imports(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT.format(modules=["numpy"]), encoding="utf-8")
    launcher = tmp_path / "clone" / ".venv" / "bin" / "chestct"
    launcher.parent.mkdir(parents=True)
    for name in ("archive", "chestct"):
        (tmp_path / "clone" / name).symlink_to(ROOT / name)
    launcher.write_bytes((ROOT / "archive" / "launch.sh").read_bytes())
    launcher.chmod(0o755)
    (launcher.parent / "python").symlink_to(sys.executable)
    installed = tmp_path / "chestct"
    installed.write_text("from archive.command import main\nmain()\n", encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    for command in ([launcher, "--version"], [sys.executable, installed, "--version"]):
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "interrupted\n")


AT_WORK = """
import os, signal, sys

def interrupt(event, details, sent=[]):
    if event == {event!r} and {sign!r} in str(details[0]) and sys.argv[0] != "-m" and not sent:
        sent.append(event)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(interrupt)
"""
"""A sitecustomize module that sends SIGINT once the process opens a file or starts a program."""


@pytest.mark.parametrize(
    ("command", "event", "sign"),
    [
        ("docs.words", "open", ".md"),
        ("docs.tables", "open", ".md"),
        ("k8s.render FOLDER", "subprocess.Popen", "kubectl"),
        ("load_tests.overload", "subprocess.Popen", "python"),
        ("serving.ensure_model", "open", "card.json"),
        ("pipeline.code", "open", "ingest.py"),
    ],
)
def test_an_interrupt_at_work_ends_in_one_line(tmp_path: Path, command: str, event: str, sign: str) -> None:
    words = command.replace("FOLDER", str(tmp_path / "k8s")).split()
    done = run(tmp_path, AT_WORK.format(event=event, sign=sign), *words, BENTOML_HOME=str(tmp_path / "bentoml"))
    assert done.returncode == INTERRUPTED, done.stderr
    assert re.fullmatch(r"\n?(\w+: )?(interrupted|stopped)\n", done.stderr)


@pytest.mark.parametrize(
    ("sign", "times"),
    [("Starting production", 1), ("Running startup hook", 1), ("page:", 3)],
    ids=["workers import", "workers start", "thrice while they drain"],
)
def test_ctrl_c_in_a_terminal_ends_the_service_without_a_traceback(tmp_path: Path, sign: str, times: int) -> None:
    home, log = tmp_path / "bentoml", tmp_path / "log"
    http, grpc = free_ports(2)
    settings = {"CHESTCT_MODEL": import_tiny_model(home), "CHESTCT_WORKERS": "2", "CHESTCT_GRPC_PORT": str(grpc)}
    # A shell's job in the background ignores SIGINT, and so would its child.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "chestct.interrupts", "bentoml", "serve"]
    with (
        log.open("w") as stream,
        subprocess.Popen(
            [*command, "--port", str(http)],
            cwd=ROOT,
            env=environment(home, **settings),
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        ) as service,
    ):
        wait_until(lambda: sign in log.read_text(), sign)
        for _ in range(times):
            if service.poll() is None:
                os.killpg(service.pid, signal.SIGINT)  # as in a terminal, it reaches all processes
            time.sleep(0.2)  # as fast as a person repeats it
        status = service.wait(300)
    said = log.read_text()
    assert "Traceback" not in said
    assert status in (0, 1, -signal.SIGINT, INTERRUPTED), said  # by where it came; a shell reports 130 for the last two


def test_other_errors_keep_their_traceback(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pydantic'] = None\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "serving.ensure_model"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "pydantic" in done.stderr


def test_a_program_that_imports_a_package_keeps_its_own_hook() -> None:
    code = "import sys, serving, load_tests; print(sys.excepthook is sys.__excepthook__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
