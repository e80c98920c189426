"""`make site`: the report on a site's slices, and the model that is adapted to them."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chestct import store
from chestct.card import DISCLAIMER
from chestct.digests import write_sums
from chestct.engine import Engine
from chestct.standard_picture import TISSUE
from chestct.store import CARD, GRAPH
from pipeline.core import paths
from pipeline.core.errors import DataError, StageError
from pipeline.core.params import Params
from pipeline.foreign.site_report import DO_NOT_USE, REACHED, SiteReport
from pipeline.images.classes import CLASSES
from pipeline.site import main, site
from tests.graphs import tiny_model, tiny_picture, unfamiliar_picture

pytestmark = pytest.mark.usefixtures("model_store")
NORMAL = CLASSES.index("normal")
BAR = {
    "labelled": [0.5, 0.3],
    "accepted_accuracy": [0.85, 0.5],
    "missed_cancers": [0.02, 0.4],
    "false_alarms": [0.05, 0.5],
}


@pytest.fixture
def params(write_params: Callable[..., Params]) -> Params:
    return write_params({"site.bar": BAR, "site.min_patients": 3, "site.bootstrap": 20})


@pytest.fixture
def tag(workspace: Path) -> str:
    """The served model, which is the tiny one."""
    tiny_model(workspace / "model")
    return store.import_model(workspace / "model")


@pytest.fixture
def put(workspace: Path) -> Callable[..., Path]:
    """Draw slices of one patient each into the site's folder of a label; each shows a class, or is unfamiliar."""
    rng = np.random.default_rng(0)

    def draw(label: str, *shown: int | None) -> Path:
        folder = workspace / "site" / label
        folder.mkdir(parents=True, exist_ok=True)
        for place, class_ in enumerate(shown):
            marks = int(rng.integers(40))
            pixels = unfamiliar_picture() if class_ is None else tiny_picture(class_, marks=marks)
            Image.fromarray(pixels[:, :, 0]).save(folder / f"{label}{place:02}_1.png")
        return workspace / "site"

    return draw


def report() -> SiteReport:
    return SiteReport.read(paths.SITE / "site.json")


def page() -> str:
    return (paths.SITE / "report.md").read_text(encoding="utf-8")


def test_a_site_where_the_model_is_right_reaches_the_bar(put: Callable[..., Path], params: Params, tag: str) -> None:
    for label, name in enumerate(CLASSES):
        folder = put(name, *[label] * 8)
    site(params, folder)
    found = report()
    assert (found.model, found.two_classes, found.slices_alone) == (tag, False, 0)
    assert (found.figures.slices, found.figures.patients) == (32, 32)
    assert found.usable
    assert found.macro_f1 is not None
    assert found.macro_f1.value == 1
    text = page()
    assert REACHED in text
    assert DO_NOT_USE not in text
    assert DISCLAIMER in text
    pictures = {path.name for path in paths.SITE.glob("*.png")}
    assert {"outcomes.png", "cancer.png", "confusion.png", "reliability.png"} <= pictures
    assert set(re.findall(r"!\[\w+\]\((.*)\)", text)) == pictures
    assert found.grey_levels[0].tissue == (TISSUE,) * 3
    assert found.refitted is not None
    assert found.refitted.tag == ""
    assert "would not reach the bar: normal slices that are accepted as a cancer (too few patients to tell)" in text
    assert "Nothing was stored." in text


def test_below_the_bar_the_report_says_plainly_not_to_use_the_model(
    put: Callable[..., Path], params: Params, tag: str
) -> None:
    put("cancer", *[0] * 8, *[NORMAL] * 3, None)
    folder = put("normal", *[NORMAL] * 6)
    with pytest.raises(StageError, match=f"Do not use this model here. {tag} is below the bar") as refused:
        site(params, folder)
    assert refused.value.exit_code == 3
    found = report()
    assert found.two_classes
    assert found.macro_f1 is None
    assert {mark.name for mark in found.marks if not mark.reached} == {"accepted_accuracy", "missed_cancers"}
    assert found.reasons == {"unfamiliar": 1}
    assert f"**{DO_NOT_USE}** Not up to the bar: " in page()
    assert "Of some slices only cancer or normal is known" in page()
    assert not (paths.SITE / "confusion.png").exists()


def test_without_normal_slices_the_bar_is_not_reached_and_nothing_is_adapted(
    put: Callable[..., Path], params: Params, tag: str
) -> None:
    put("LUSC", *[3] * 8)
    folder = put("LUAD", *[0] * 8)
    with pytest.raises(StageError, match=r"too few slices to adapt .*: each half needs at least 3 .* 0 and 0 without"):
        site(params, folder, adapt=True)
    found = report()
    assert found.figures.table == {
        "adenocarcinoma": {"adenocarcinoma": 8},
        "squamous_cell_carcinoma": {"squamous_cell_carcinoma": 8},
    }
    assert {mark.name: mark.verdict for mark in found.marks}["false_alarms"] == "not measured"
    assert "Too few slices to refit the numbers: each half needs" in page()
    assert store.find().tag == tag


def test_an_adapted_model_is_stored_with_its_lineage_and_served_only_by_its_tag(
    put: Callable[..., Path], params: Params, tag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for label, name in enumerate(CLASSES):
        folder = put(name, *[label] * 7, (label + 1) % 4)
    with pytest.raises(StageError, match="is below the bar"):
        site(params, folder, adapt=True)
    found = report().refitted
    assert found is not None
    stored = store.find(found.tag)
    card, base = stored.read_card(), store.find(tag)
    assert store.find().tag == tag
    assert card.lineage.adapted is not None
    adapted = card.lineage.adapted
    assert (adapted.base, adapted.slices, adapted.patients) == (tag, 16, 16)
    assert adapted.data_digest == report().digest
    assert (found.fitted_slices, found.before.slices, found.after.slices) == (16, 16, 16)
    assert card.scaling.scale == pytest.approx([1 / found.temperature] * 4)
    assert card.thresholds == found.thresholds
    assert f"refitted on 16 slices of 16 patients. The figures of this card are of the base, {tag}" in card.caveats[0]
    pixels = tiny_picture(1)[np.newaxis]
    before, after = (Engine(each.graph).infer(pixels) for each in (base, stored))
    assert np.array_equal(before.heatmaps, after.heatmaps)
    powers = before.probabilities ** (1 / found.temperature)
    assert after.probabilities == pytest.approx(powers / powers.sum(), abs=1e-5)
    assert f"`CHESTCT_MODEL={found.tag} make serve`" in capsys.readouterr().out
    assert f"Stored as `{found.tag}`" in page()
    with pytest.raises(StageError, match=f"is adapted already; adapt its base, {tag}"):
        site(params, folder, found.tag, adapt=True)


def test_the_command_answers_with_the_released_model_and_ends_in_one_line(
    put: Callable[..., Path],
    params: Params,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_model(workspace / "release")
    write_sums(workspace / "release", GRAPH, CARD)
    folder = put("normal", NORMAL)
    monkeypatch.setattr("sys.argv", ["site", str(folder), "--adapt"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("site: too few slices to adapt chestct:")
    with pytest.raises(DataError, match="nothing is known of 'covid'"):
        site(params, put("covid", 0))


def test_a_site_without_any_readable_slice_still_gets_its_report(workspace: Path, params: Params, tag: str) -> None:
    (workspace / "site" / "cancer").mkdir(parents=True)
    (workspace / "site" / "cancer" / "1.png").write_bytes(b"no picture")
    with pytest.raises(StageError, match="Do not use this model here"):
        site(params, workspace / "site")
    assert "Not readable: 1 files, undecodable_image: " in page()
    assert report().figures.shares["labelled"] is not None
