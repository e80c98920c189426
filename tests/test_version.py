"""There is one version, chestct.__version__. Manifests and workflows repeat it in the names of images."""

import re
import tomllib

import chestct
from tests.server import ROOT


def test_the_package_takes_its_version_from_the_code() -> None:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert content["project"]["dynamic"] == ["version"]
    assert content["tool"]["setuptools"]["dynamic"] == {"version": {"attr": "chestct.__version__"}}
    assert re.fullmatch(r"\d+\.\d+\.\d+", chestct.__version__)


def test_the_other_images_have_one_tag_wherever_they_are_named() -> None:
    pages = [*(ROOT / "k8s").rglob("*.yaml"), *(ROOT / ".github/workflows").glob("*.yaml")]
    pages += [ROOT / "docs/tutorials/deploy-on-kind.md", ROOT / "docs/how-to/connect-a-pacs.md"]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    named = re.findall(r"chestct-(?:load|dicom-node):(\d[\w.-]*\w)", text)
    assert len(named) == 15
    assert set(named) == {chestct.__version__}


def test_the_tutorial_pulls_the_release_of_this_version() -> None:
    page = (ROOT / "docs/tutorials/deploy-on-kind.md").read_text(encoding="utf-8")
    assert set(re.findall(r"OWNER/REPOSITORY:v([\d.]+\d)", page)) == {chestct.__version__}


def test_the_changelog_has_no_release_after_this_version() -> None:
    page = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in page
    releases = [numbers(release) for release in re.findall(r"^## \[(\d.*?)\]", page, re.MULTILINE)]
    assert releases == sorted(releases, reverse=True)
    assert releases[0] <= numbers(chestct.__version__)


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
