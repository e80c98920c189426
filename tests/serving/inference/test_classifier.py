"""From an image to its answer, with the tiny model."""

import asyncio
import base64
import threading
from collections.abc import Awaitable, Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from chestct.card import ModelCard
from chestct.engine import Engine, Scores
from chestct.image import encode_png
from chestct.invalid_image import InvalidImage
from chestct.prediction import Prediction
from chestct.reader_process import Cause, ProcessEnded
from chestct.store import GRAPH
from serving.inference.batches import EngineFailed
from serving.inference.classifier import Classifier
from serving.inference.guarded_reader import MOST_WAITING, ReaderFailed
from serving.settings import Settings
from serving.telemetry import metrics
from serving.telemetry.request_record import RequestRecord
from serving.unavailable import Closed, Overloaded
from tests.dicom import dicom_file
from tests.graphs import tiny_model, tiny_picture
from tests.pictures import png_header

T = TypeVar("T")

DICOM = dicom_file(tiny_picture(1)[:, :, 0])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, ModelCard]:
    folder = tmp_path_factory.mktemp("model")
    card = tiny_model(folder)
    return Engine(folder / GRAPH, threads=1, batch_sizes=(1, 2, 4)), card


def png(label: int) -> bytes:
    return encode_png(tiny_picture(label)[:, :, 0])


def use(model: tuple[Any, ModelCard], call: Callable[[Classifier], Awaitable[T]], **settings: Any) -> T:
    async def run() -> T:
        classifier = Classifier(*model, "chestct:abc", Settings(largest_batch=4, **settings))
        await classifier.warm_up()
        try:
            return await call(classifier)
        finally:
            await classifier.close()

    return asyncio.run(run())


def grey(encoded: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(base64.b64decode(encoded))))


def test_an_image_gets_the_label_of_its_brightest_band(model: tuple[Engine, ModelCard]) -> None:
    for label, name in enumerate(model[1].classes):
        data = png(label)
        prediction = use(model, lambda c, data=data: c.classify(data, RequestRecord("r")))  # type: ignore[misc]
        assert (prediction.label, prediction.request_id, prediction.model) == (name, "r", "chestct:abc")
        assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-6)
        assert prediction.heatmaps is None


def test_an_explanation_holds_a_map_a_class_and_the_models_view(model: tuple[Engine, ModelCard]) -> None:
    prediction = use(model, lambda c: c.classify(png(1), RequestRecord("r"), explain=True))
    assert prediction.heatmaps is not None
    assert prediction.preview is not None
    maps = {name: grey(encoded) for name, encoded in prediction.heatmaps.items()}
    assert list(maps) == list(model[1].classes)
    assert all(map_.shape == (32, 32) and map_.dtype == np.uint8 for map_ in maps.values())
    spoken = maps["large_cell_carcinoma"]
    assert spoken.max() > 220  # one scale for all classes: the strongest is near the top
    assert spoken[12].mean() > 200 > spoken[28].mean()
    assert all(map_.max() < 128 for name, map_ in maps.items() if name != "large_cell_carcinoma")
    np.testing.assert_array_equal(grey(prediction.preview), tiny_picture(1)[:, :, 0])


def test_many_images_get_one_outcome_each_in_order(model: tuple[Engine, ModelCard]) -> None:
    images = [png(0), b"no picture", png(2), b"", *(png(label % 4) for label in range(40))]
    outcomes = use(model, lambda c: c.classify_many(images, RequestRecord("r")), queue_size=8)
    labels = [outcome.label if isinstance(outcome, Prediction) else outcome.code for outcome in outcomes]  # type: ignore[union-attr]
    classes = model[1].classes
    expected = [
        classes[0],
        "undecodable_image",
        classes[2],
        "empty_image",
        *(classes[label % 4] for label in range(40)),
    ]
    assert labels == expected


def test_pixels_are_answered_like_their_file_with_a_warning(model: tuple[Engine, ModelCard]) -> None:
    pixels = np.stack([tiny_picture(label) for label in (3, 1, 0, 2, 1)])
    predictions = use(model, lambda c: c.classify_pixels(pixels, RequestRecord("r")))
    assert [prediction.label for prediction in predictions] == [model[1].classes[label] for label in (3, 1, 0, 2, 1)]
    assert {prediction.warnings for prediction in predictions} == {("pixels_input",)}
    file = use(model, lambda c: c.classify(png(3), RequestRecord("r")))
    assert list(file.probabilities.values()) == pytest.approx(list(predictions[0].probabilities.values()), abs=1e-6)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((1, 16, 32, 1), np.uint8), np.zeros((1, 32, 32, 1), np.float32), np.zeros((32, 32, 1), np.uint8)],
    ids=["size", "type", "rank"],
)
def test_pixels_of_another_shape_or_type_are_refused(
    model: tuple[Engine, ModelCard], pixels: NDArray[np.uint8]
) -> None:
    with pytest.raises(ValueError, match=r"expected pixels uint8 \[N, 32, 32, 1\]"):
        use(model, lambda c: c.classify_pixels(pixels, RequestRecord("r")))


def test_a_bad_image_is_refused_before_the_queue(model: tuple[Engine, ModelCard]) -> None:
    with pytest.raises(InvalidImage, match="a DICOM file, got 4 bytes that are none of them"):
        use(model, lambda c: c.classify(b"text", RequestRecord("r")))


@pytest.mark.parametrize(
    ("size", "guarded"),
    [((64, 64), False), ((2048, 2048), False), ((2049, 2048), True)],
    ids=["small", "large", "huge"],
)
def test_a_picture_that_may_be_costly_is_decoded_by_the_guarded_process(
    model: tuple[Engine, ModelCard], size: tuple[int, int], guarded: bool
) -> None:
    data = png(2)
    picture = encode_png(np.asarray(Image.open(BytesIO(data)).resize(size, Image.Resampling.NEAREST)))

    async def label(classifier: Classifier) -> tuple[str | None, bool]:
        prediction = await classifier.classify(picture, RequestRecord("r"))
        return prediction.label, classifier._reader._process.id is not None

    assert use(model, label) == (model[1].classes[2], guarded)


def test_a_costly_picture_that_is_too_large_starts_no_process(model: tuple[Engine, ModelCard]) -> None:
    async def code(classifier: Classifier) -> tuple[str, bool]:
        with pytest.raises(InvalidImage) as refused:
            await classifier.classify(png_header(1, 16_777_216), RequestRecord("r"))
        return refused.value.code, classifier._reader._process.id is None

    assert use(model, code) == ("image_too_large", True)


def test_other_formats_are_named(model: tuple[Engine, ModelCard]) -> None:
    with pytest.raises(InvalidImage, match=r"or a DICOM file, got a GIF file, which is not read here; save it as PNG"):
        use(model, lambda c: c.classify(b"GIF89a" + bytes(99), RequestRecord("r")))


def hold(monkeypatch: pytest.MonkeyPatch, decoder: str) -> threading.Event:
    """Make the decoder of that name wait for the event and then refuse its file."""
    release = threading.Event()

    def slow(*_: object) -> None:
        release.wait(300)
        raise InvalidImage("undecodable_image", "slow")

    monkeypatch.setattr(decoder, slow)
    return release


def test_images_being_decoded_count_against_the_queue(
    model: tuple[Engine, ModelCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = hold(monkeypatch, "chestct.guarded_decoding.decode_encoded")

    async def flood(classifier: Classifier) -> tuple[float, list[Any]]:
        tasks = [asyncio.create_task(classifier.classify(png(1), RequestRecord("r"))) for _ in range(10)]
        await asyncio.sleep(0.05)
        depth = metrics.QUEUE_DEPTH._value.get()
        release.set()
        return depth, await asyncio.gather(*tasks, return_exceptions=True)

    depth, outcomes = use(model, flood, queue_size=4)
    assert (depth, metrics.QUEUE_DEPTH._value.get()) == (4, 0)
    assert [type(outcome) for outcome in outcomes] == [InvalidImage] * 4 + [Overloaded] * 6


def test_a_flood_of_dicom_files_is_bounded_and_leaves_pictures_alone(
    model: tuple[Engine, ModelCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = hold(monkeypatch, "chestct.reader_process.ReaderProcess.decode")

    async def flood(classifier: Classifier) -> tuple[Prediction, list[Any]]:
        tasks = [asyncio.create_task(classifier.classify(DICOM, RequestRecord("r"))) for _ in range(12)]
        await asyncio.sleep(0.05)
        prediction = await classifier.classify(png(1), RequestRecord("r"))
        release.set()
        return prediction, await asyncio.gather(*tasks, return_exceptions=True)

    prediction, outcomes = use(model, flood, queue_size=2)
    assert prediction.label == "large_cell_carcinoma"
    expected = [InvalidImage] * (1 + MOST_WAITING) + [Overloaded] * (11 - MOST_WAITING)
    assert [type(outcome) for outcome in outcomes] == expected


def test_a_process_that_fails_costs_one_file_and_not_its_batch(
    model: tuple[Engine, ModelCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: object) -> None:
        raise ProcessEnded(Cause.HUNG)

    monkeypatch.setattr("chestct.reader_process.ReaderProcess.decode", hang)
    images = [png(1), DICOM, png(0)]
    first, second, third = use(model, lambda c: c.classify_many(images, RequestRecord("r")))
    assert isinstance(first, Prediction)
    assert isinstance(second, ReaderFailed)
    assert isinstance(third, Prediction)


def test_an_engine_that_fails_is_named_and_the_next_image_is_answered(model: tuple[Engine, ModelCard]) -> None:
    class Flaky:
        largest_batch = 4
        fails = False

        def infer(self, pixels: NDArray[np.uint8]) -> Scores:
            if self.fails:
                raise RuntimeError("out of memory")
            return model[0].infer(pixels)

        infer_alone = infer

    flaky = Flaky()

    async def twice(classifier: Classifier) -> Prediction:
        flaky.fails = True
        with pytest.raises(EngineFailed, match="out of memory"):
            await classifier.classify(png(0), RequestRecord("r"))
        flaky.fails = False
        return await classifier.classify(png(0), RequestRecord("r"))

    assert use((flaky, model[1]), twice).label == "adenocarcinoma"


def test_ready_after_the_warm_up_and_never_after_closing(model: tuple[Engine, ModelCard]) -> None:
    async def run() -> list[bool]:
        classifier = Classifier(*model, "chestct:abc", Settings())
        states = [classifier.ready]
        await classifier.warm_up()
        states.append(classifier.ready)
        await classifier.close()
        states.append(classifier.ready)
        with pytest.raises(Closed):
            await classifier.classify(png(0), RequestRecord("r"))
        return states

    assert asyncio.run(run()) == [False, True, False]


def test_a_synthetic_model_says_so(tmp_path: Path) -> None:
    card = tiny_model(tmp_path, data_source="synthetic")
    engine = Engine(tmp_path / GRAPH, threads=1, batch_sizes=(1,))
    assert use((engine, card), lambda c: c.classify(png(0), RequestRecord("r"))).warnings == ("synthetic_model",)
