"""The pages name commands, endpoints, settings and files that exist (figures: pipeline/test_documents.py)."""

import re
import subprocess
from pathlib import Path

import httpx
import pytest

from serving.http.app import create_app
from serving.settings import Settings
from tests.server import ROOT, Server

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
ROUTES = (ROOT / "docs/reference/http-api.md").read_text(encoding="utf-8")
CODE = "benchmarks|chestct|docs|k8s|load_tests|pipeline|serving|tests"
ENDPOINTS = re.findall(r"`(GET|POST) (/\S*)`", ROUTES)


def test_every_make_command_in_the_docs_runs() -> None:
    commands = {command for page in PAGES for command in re.findall(r"\bmake ([a-z-]+)\b", _code(page))}
    assert {"serve", "test", "demo", "train", "load"} <= commands
    for command in commands:
        # A dry run: it prints what would run, and fails where there is no such target. Port 0 is always free.
        dry_run = ["make", "--dry-run", command, "PORT=0", "GRPC_PORT=0"]
        done = subprocess.run(dry_run, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_make_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make (\S+) ", listed, re.MULTILINE) == re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE)
    assert sorted(phony.split()) == sorted(re.findall(r"^  make (\S+) ", listed, re.MULTILINE))


@pytest.mark.parametrize(("verb", "path"), ENDPOINTS)
def test_every_documented_endpoint_exists(server: Server, verb: str, path: str) -> None:
    path = path.format(name="chestct", version=server.tag.partition(":")[2])
    assert httpx.request(verb, server.url + path, timeout=300).status_code not in (404, 405)


def test_every_route_is_documented() -> None:
    app = create_app(Settings.read())
    routes = {route.name for route in app.routes if hasattr(route, "endpoint")}
    routes |= {route.name for mount in app.routes for route in getattr(mount, "routes", [])}
    assert routes <= {path for _, path in ENDPOINTS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_points_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).is_file(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_module_that_a_page_names_exists(page: Path) -> None:
    words = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    named = [word for word in words if re.fullmatch(rf"(?:{CODE})(?:/[\w/]+(?:\.\w+)?|(?:\.\w+)+)/?", word)]
    # serving.http.body.MAX_JSON is a name in serving/http/body.py.
    paths = {word: word if "/" in word else word.replace(".", "/") for word in named if "NAME" not in word}
    unknown = [word for word, path in paths.items() if not _is_code(path) and not _is_code(path.rpartition("/")[0])]
    assert unknown == []


def test_readme_is_short_and_its_picture_to_send_is_drawn() -> None:
    assert len(README.split()) <= 400
    (sent,) = re.findall(r"curl -F image=@(\S+)", README)
    assert (ROOT / sent).is_file()
    assert b"Synthetic: drawn" in (ROOT / sent).read_bytes()
    assert "docker run" in README
    assert len(re.findall(r"^- \[", README, re.MULTILINE)) == 3


def test_the_layout_table_has_every_package_and_only_what_exists() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page.partition("| folder | holds |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    names = {name.rstrip("/") for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []
    packages = subprocess.run(
        ["git", "ls-files", "*/__init__.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    folders = {str(Path(line).parent) for line in packages.stdout.splitlines()}
    assert {folder for folder in folders if not folder.startswith("tests")} <= names


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    clients = {page for page in pages if page.startswith("how-to/clients/")} - {"how-to/clients/index.md"}
    assert pages - clients - {"index.md"} <= set(re.findall(r"\]\(([^)#]+)\)", index))


def test_every_file_and_folder_that_contributors_are_sent_to_exists() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = set(re.findall(r"(?<![\w/])(?:\.?\w[\w.-]*/)+[\w.-]*\w\.\w+|`(?:\.?[\w-]+/)+`", page))
    names = {name.strip("`") for name in names if "NAME" not in name}
    assert len(names) > 25
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def _code(page: Path) -> str:
    """Return the page's code: fenced blocks and words in backticks."""
    text = page.read_text(encoding="utf-8")
    return "\n".join(block or word for block, word in re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", text, re.DOTALL))


def _is_code(path: str) -> bool:
    return (ROOT / path).exists() or (ROOT / f"{path}.py").is_file()
