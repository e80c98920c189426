"""A row of the inference log: its columns and their values."""

from datetime import date
from io import BytesIO

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from chestct.card import DISCLAIMER
from chestct.prediction import Prediction, decide
from serving.inference_log.rows import Noted, day_of, schema, to_parquet, to_row
from tests.graphs import OOD_LIMIT, plain_facts, tiny_card

CARD = tiny_card()
PROBABILITIES = np.array([0.75, 0.125, 0.0625, 0.0625], np.float32)
TEXT, NUMBER = pyarrow.string(), pyarrow.float64()
COLUMNS = {
    "time": pyarrow.timestamp("us", "UTC"),
    "request_id": TEXT,
    "image": pyarrow.int64(),
    "protocol": TEXT,
    "sha256": TEXT,
    "model": TEXT,
    "model_sha256": TEXT,
    **{f"input_{name}": NUMBER for name in ("side", "tissue", "air", "body", "contrast", "blockiness")},
    "familiarity": NUMBER,
    "chest_ct": NUMBER,
    "confidence": NUMBER,
    "decision": TEXT,
    "label": TEXT,
    "any_cancer": NUMBER,
    "ood_score": NUMBER,
    **{f"p_{name}": NUMBER for name in CARD.classes},
    "prediction_set": TEXT,
    "between": TEXT,
    "reasons": TEXT,
    "warnings": TEXT,
    "disclaimer": TEXT,
}
"""All that the log holds. A column more needs a reason, and a line in docs/how-to/keep-an-inference-log.md."""


def answer(**scores: float) -> Prediction:
    given = {"ood_score": 0.11, "chest_ct": 0.75, **scores}
    return decide(CARD, PROBABILITIES, facts=plain_facts(), request_id="r", model="chestct:a", **given)


def noted(prediction: Prediction, seconds: float = 1_700_000_000.25, *, pixels: bool = False) -> Noted:
    facts = None if pixels else plain_facts(width=400, height=300, tissue=110.0)
    return Noted(seconds, "r-1", "grpc", 3, "ab" * 32, facts, prediction)


def test_the_log_holds_these_columns_and_no_other() -> None:
    table = pyarrow.parquet.read_table(BytesIO(to_parquet(CARD, [to_row(CARD, noted(answer()))])))
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == COLUMNS
    assert set(schema(CARD.classes).names) == set(COLUMNS)
    assert table.schema.metadata[b"disclaimer"] == DISCLAIMER.encode()


def test_a_row_has_the_answer_and_what_it_is_about() -> None:
    prediction = answer()
    (row,) = pyarrow.parquet.read_table(BytesIO(to_parquet(CARD, [to_row(CARD, noted(prediction))]))).to_pylist()
    assert row["time"].isoformat() == "2023-11-14T22:13:20.250000+00:00"
    assert [row[name] for name in ("request_id", "image", "protocol", "sha256")] == ["r-1", 3, "grpc", "ab" * 32]
    assert (row["model"], row["model_sha256"]) == ("chestct:a", CARD.lineage.model_sha256)
    assert [row[f"p_{name}"] for name in CARD.classes] == PROBABILITIES.tolist()
    assert (row["decision"], row["label"], row["confidence"]) == ("accept", CARD.classes[0], 0.75)
    assert (row["ood_score"], row["chest_ct"]) == (0.11, 0.75)
    assert row["familiarity"] == pytest.approx(0.11 / OOD_LIMIT)
    assert (row["input_side"], row["input_tissue"]) == (400, 110)
    assert (row["reasons"], row["warnings"], row["disclaimer"]) == ("", "", DISCLAIMER)


def test_a_rejected_image_has_its_reasons_and_facts_but_no_label() -> None:
    row = to_row(CARD, noted(answer(chest_ct=0.0)))
    assert (row["decision"], row["reasons"], row["input_side"]) == ("reject", "not_chest_ct", 400)
    assert (row["label"], row["confidence"]) == (None, None)


def test_pixels_have_no_facts_about_a_picture() -> None:
    (row,) = pyarrow.parquet.read_table(
        BytesIO(to_parquet(CARD, [to_row(CARD, noted(answer(), pixels=True))]))
    ).to_pylist()
    assert {row[name] for name in COLUMNS if name.startswith("input_")} == {None}
    assert row["familiarity"] is not None


def test_the_day_is_that_of_the_prediction_in_utc() -> None:
    for seconds, day in ((1_700_006_399.999, 14), (1_700_006_400.0, 15)):
        assert day_of(to_row(CARD, noted(answer(), seconds))) == date(2023, 11, day)
