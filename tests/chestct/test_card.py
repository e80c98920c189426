"""The model card: it reads back as it was written, and its parts must fit each other."""

import json

import pytest
from pydantic import ValidationError

from chestct.card import ModelCard
from tests.graphs import tiny_card


def test_a_card_reads_back_as_it_was_written(tmp_path):
    card = tiny_card()
    card.write(tmp_path / "card.json")
    assert ModelCard.read(tmp_path / "card.json") == card


def test_a_card_from_before_something_was_recorded_is_read(tmp_path):
    content = tiny_card().model_dump(mode="json")
    for newer in (content["lineage"].pop("trained_commit"), content.pop("folds")):
        assert newer in ("unknown", [])
    (tmp_path / "card.json").write_text(json.dumps(content), encoding="utf-8")
    assert ModelCard.read(tmp_path / "card.json") == tiny_card()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"normal": "healthy"}, "normal"),
        ({"titles": {"normal": "Normal"}}, "titles"),
        ({"logit_bias": [0.0]}, "logit_bias"),
        ({"scaling": {"method": "temperature", "scale": [1.0] * 3, "shift": [0.0] * 4}}, "scaling.scale"),
        ({"scaling": {"method": "temperature", "scale": [0.0] * 4, "shift": [0.0] * 4}}, "scaling.scale"),
        ({"colour": "blue"}, "colour"),
        ({"input": {"height": 32, "width": 32, "channels": 3}}, "channels"),
    ],
)
def test_inconsistent_fields_are_named(tmp_path, change, named):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(tiny_card().model_dump(mode="json") | change), encoding="utf-8")
    with pytest.raises(ValidationError, match=named):
        ModelCard.read(path)
