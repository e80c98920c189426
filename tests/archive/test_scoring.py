"""Files become rows with the numbers of the service, or with an error of their own."""

import asyncio
import hashlib
from functools import partial
from pathlib import Path

import httpx
import pyarrow
import pytest

from archive import models, scoring
from archive.models import Model
from archive.scoring import File, Scorer
from chestct import reader_process, tables
from chestct.card import DISCLAIMER, ModelCard
from chestct.invalid_image import InvalidImage
from chestct.prediction import Prediction
from chestct.store import CARD, GRAPH
from chestct.tables import Row
from serving.inference.classifier import Classifier, load_engine
from serving.settings import Settings
from serving.telemetry.request_record import RequestRecord
from tests.archive.kinds import kinds, png_of
from tests.server import ROOT, Server

KINDS = kinds()
SAMPLES = sorted((ROOT / "serving/http/page/samples").glob("*.jpg"))


def files(contents: dict[str, bytes]) -> list[File]:
    return [File(name, partial(bytes, data)) for name, data in contents.items()]


def assert_same(row: Row, answer: Prediction) -> None:
    """The row says what the service said, its numbers to 1e-6."""
    texts = {name: " ".join(getattr(answer, name)) for name in ("prediction_set", "between", "reasons", "warnings")}
    assert {name: row[name] for name in texts} == texts
    assert (row.get("error"), row["decision"], row["label"], row["model"]) == (
        *(None, answer.decision, answer.label, answer.model),
    )
    for name in ("confidence", "chest_ct", "ood_score"):
        expected = getattr(answer, name)
        assert row[name] == (None if expected is None else pytest.approx(expected, abs=1e-6))
    assert [row[f"p_{name}"] for name in answer.probabilities] == pytest.approx(
        list(answer.probabilities.values()), abs=1e-6
    )
    assert row["any_cancer"] == pytest.approx(1 - answer.probabilities["normal"], abs=1e-6)


def ask(card: ModelCard, graph: Path, tag: str, contents: dict[str, bytes]) -> list[Prediction | InvalidImage]:
    """What the service answers to these files, one after the other."""

    async def answers() -> list[Prediction | InvalidImage]:
        settings = Settings(engine_threads=1)
        classifier = Classifier(load_engine(graph, card, settings), card, tag, settings)
        await classifier.warm_up()
        found: list[Prediction | InvalidImage] = []
        for data in contents.values():
            try:
                found.append(await classifier.classify(data, RequestRecord("")))
            except InvalidImage as error:
                found.append(error)
        await classifier.close()
        return found

    return asyncio.run(answers())


def test_every_kind_of_file_has_the_services_numbers_or_its_error(model: Model, scorer: Scorer) -> None:
    answers = ask(model.card, model.graph, model.tag, KINDS)
    assert {type(answer) for answer in answers} == {Prediction, InvalidImage}
    assert {"accept", "refer", "reject"} == {answer.decision for answer in answers if isinstance(answer, Prediction)}
    rows = list(scorer.score(files(KINDS)))
    assert [row["file"] for row in rows] == list(KINDS)
    for row, answer, data in zip(rows, answers, KINDS.values(), strict=True):
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["seconds"] > 0
        assert row["disclaimer"] == DISCLAIMER
        if isinstance(answer, Prediction):
            assert_same(row, answer)
        else:
            assert (row["error"], row["message"]) == (answer.code, answer.message), row["file"]
            assert "decision" not in row


def test_the_released_models_close_calls_are_computed_as_in_the_service() -> None:
    """In int8 and bfloat16, the service computes them again in float32."""
    card = ModelCard.read(models.RELEASE / CARD)
    release = Model("chestct:released", models.RELEASE / GRAPH, card)
    wide = card.thresholds.model_copy(update={"refer_margin": 0.5})
    close = release._replace(card=card.model_copy(update={"thresholds": wide}))
    contents = {path.name: path.read_bytes() for path in SAMPLES}
    for tried in (release, close):
        scorer = Scorer(tried)
        rows = list(scorer.score(files(contents)))
        scorer.close()
        for row, answer in zip(rows, ask(tried.card, tried.graph, tried.tag, contents), strict=True):
            assert isinstance(answer, Prediction)
            assert_same(row, answer)


def test_the_server_says_the_same_over_http(server: Server, scorer: Scorer) -> None:
    contents = {name: KINDS[name] for name in ("grey.png", "16-bit.png", "rgb.jpg", "JPEG2000.dcm", "cut.dcm")}
    for row, data in zip(scorer.score(files(contents)), contents.values(), strict=True):
        answer = httpx.post(f"{server.url}/v1/predict", content=data, timeout=300).json()
        if "error" in answer:
            assert (row["error"], row["message"]) == (answer["error"]["code"], answer["error"]["message"])
        else:
            assert_same(row, Prediction.model_validate(answer).model_copy(update={"model": row["model"]}))


def test_a_file_that_ends_its_decoder_is_one_row(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; from chestct import dicom, reader_child; dicom.read = lambda _: os.abort(); reader_child.main()"
    monkeypatch.setattr(reader_process, "COMMAND", (reader_process.COMMAND[0], "-c", code))
    scorer = Scorer(model)
    contents = {"a.png": png_of(1), "crash.dcm": KINDS["signed.dcm"], "b.png": png_of(2)}
    rows = list(scorer.score(files(contents)))
    scorer.close()
    assert [row.get("error") for row in rows] == [None, "undecodable_image", None]


def test_a_decoder_that_is_killed_from_outside_is_an_error_of_its_own(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, signal; from chestct import dicom, reader_child; {}; reader_child.main()"
    kill = "dicom.read = lambda _: os.kill(os.getpid(), signal.SIGKILL)"
    monkeypatch.setattr(reader_process, "COMMAND", (reader_process.COMMAND[0], "-c", code.format(kill)))
    scorer = Scorer(model)
    (row,) = scorer.score(files({"a.dcm": KINDS["signed.dcm"]}))
    scorer.close()
    assert row["error"] == "reader_failed"


def test_paths_and_bytes_of_any_arrow_library_become_rows(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pure function that Spark and Ray map: batches in, batches out."""
    monkeypatch.setattr(models, "find", lambda _: model)
    (tmp_path / "a.png").write_bytes(png_of(3))
    paths = pyarrow.record_batch({"file": [str(tmp_path / "a.png"), str(tmp_path / "absent.png"), str(tmp_path)]})
    contents = pyarrow.record_batch({"file": ["b", "c"], "content": [png_of(1), b""]})
    first, second = (tables.to_rows(batch) for batch in scoring.score(iter([paths, contents])))
    classes = model.card.classes
    assert [row["label"] for row in (*first, *second)] == [classes[3], None, None, classes[1], None]
    assert [row["error"] for row in first] == [None, "file_missing", "file_unreadable"]
    assert [row["error"] for row in second] == [None, "empty_image"]
    (batch,) = scoring.score([contents])
    assert pyarrow.record_batch(batch).schema.metadata[b"disclaimer"] == DISCLAIMER.encode()
    assert pyarrow.record_batch(batch).column("confidence").type == pyarrow.float64()
