"""Pictures that are no chest CT: every kind is there, and the rules reject theirs."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from chestct.card import InputSpec, ModelCard
from chestct.image import Picture, decode
from chestct.prediction import RULES, Evidence
from pipeline.core.params import Params
from pipeline.images import drawn_scans, made_scans
from pipeline.images.phantoms import draw_phantom
from pipeline.judging.calibration import average_layout
from pipeline.judging.other_pictures import COUNT, draw_other_pictures
from tests.graphs import tiny_card
from tests.pipeline.conftest import ROOT

SPEC = InputSpec(height=64, width=64)


@pytest.fixture(scope="module")
def phantoms() -> np.ndarray:
    """Slices in the form of stage prepare."""
    drawn = [draw_phantom(index % 4, np.random.default_rng(index)).convert("L").resize((64, 64)) for index in range(12)]
    return np.stack([np.asarray(image)[:, :, np.newaxis] for image in drawn])


@pytest.fixture(scope="module")
def others(phantoms: np.ndarray) -> list[tuple[str, Picture]]:
    pictures = [Image.fromarray(pixels[:, :, 0]) for pixels in phantoms]
    return [(group, decode(content, SPEC)) for group, content in draw_other_pictures(phantoms, pictures, seed=1)]


def rejected(picture: Picture, card: ModelCard) -> set[str]:
    """The rules on the input that reject the picture, with the limits of this card."""
    evidence = Evidence(np.full(4, 0.25), 0.0, 1.0, 2, card.thresholds, picture.facts, card.input_limits)
    return {rule.name for rule in RULES if rule.on == "input" and rule.fires(evidence)}


def test_every_kind_of_picture_is_there(others: list[tuple[str, Picture]]) -> None:
    counts = Counter(group for group, _ in others)
    assert counts == {
        **dict.fromkeys(("photographs", "grey_photographs", "text", "noise", "drawn_phantoms"), COUNT),
        **dict.fromkeys(drawn_scans.SCANS, COUNT),
        **dict.fromkeys(("inverted_ct", "upside_down_ct", "screenshots_of_ct", "contact_sheets_of_ct"), 12),
        **dict.fromkeys(made_scans.SCANS, 12),
        "head_ct": 6,
        "mr": 9,
        "ultrasound": 12,
    }


def test_each_rule_on_the_input_rejects_its_kind_of_picture(
    phantoms: np.ndarray, others: list[tuple[str, Picture]]
) -> None:
    slices = [picture for group, picture in others if group == "drawn_phantoms"]
    rules = Params.read(ROOT / "params.yaml").evaluate.input_rules.model_dump()
    layout = average_layout([picture.facts for picture in slices])
    card = tiny_card()
    limits = card.input_limits.model_copy(update={**rules, "average_layout": layout})
    card = card.model_copy(update={"input_limits": limits})
    found: dict[str, list[set[str]]] = {}
    for group, picture in others:
        found.setdefault(group, []).append(rejected(picture, card))
    assert all("not_grey" in reasons for reasons in found["photographs"])
    assert all("screenshot_frame" in reasons for reasons in found["screenshots_of_ct"])
    assert sum("inverted" in reasons for reasons in found["inverted_ct"]) >= 10
    assert not any(found["drawn_phantoms"])
    assert not any(found["upside_down_ct"]), "only the OOD score can reject an upside-down slice"
