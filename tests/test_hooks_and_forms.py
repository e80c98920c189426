"""A contributor's hooks run the checks of `make check`, and every form protects patients."""

import re
from typing import Any

import pytest
import yaml

from tests.server import ROOT

HOOKS: list[dict[str, Any]] = [
    hook
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    for hook in repository["hooks"]
]
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
KINDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_hook_runs_a_line_of_make_check_and_downloads_nothing(hook: dict[str, Any]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^check:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert hook["language"] == "system"
    lines = [line.strip().removeprefix("$(calmly) ") for line in recipe.splitlines()]  # which ends Ctrl-C in one line
    assert hook["entry"].removeprefix(".venv/bin/") in lines
    assert hook["pass_filenames"] is False  # else another set of files would be looked at


def test_the_hooks_are_the_linters() -> None:
    assert [hook["id"] for hook in HOOKS] == ["ruff-check", "ruff-format", "mypy", "yamllint", "words"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_whole_and_asks_that_no_patient_is_shown(path: Any) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(form) == {"name", "description", "labels", "body"}
    assert {item["type"] for item in form["body"]} <= KINDS
    assert form["body"][0]["attributes"]["value"].startswith("**Never attach a patient's image")
    asked = [item for item in form["body"] if item["type"] != "markdown"]
    assert len({item["id"] for item in asked}) == len(asked)
    assert all(item["attributes"]["label"] for item in asked)
    (privacy,) = asked[-1]["attributes"]["options"]
    assert privacy["required"] is True
    assert "no image of a patient" in privacy["label"]


def test_a_pull_request_is_asked_the_same() -> None:
    assert "No image, DICOM file" in (ROOT / ".github/PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8")
