"""The Open Inference Protocol without a transport, with a classifier of the tiny model."""

import asyncio
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from chestct.card import ModelCard
from chestct.engine import Engine
from chestct.image import encode_png
from chestct.invalid_image import InvalidImage
from chestct.store import GRAPH
from serving import open_inference
from serving.inference.classifier import Classifier
from serving.settings import Settings
from serving.telemetry.request_record import RequestRecord
from serving.tensors import Input, InvalidRequest, pack_bytes, unpack_bytes
from tests.graphs import (
    CHEST_CT_LIMIT,
    narrow_picture,
    tiny_card,
    tiny_model,
    tiny_picture,
    tiny_scores,
    unfamiliar_picture,
)

TAG = "chestct:abc"
SIZE = 32
SHAPE = (1, SIZE, SIZE, 1)
NARROW = narrow_picture()


class Model:
    """Asks the tiny model, with a new classifier in the event loop of each call."""

    def __init__(self, folder: Path) -> None:
        self.card: ModelCard = tiny_model(folder, size=SIZE)
        self._engine = Engine(folder / GRAPH, threads=1)

    def infer(self, *inputs: Input, outputs: Sequence[str] = ()) -> dict[str, open_inference.Tensor]:
        async def call() -> tuple[open_inference.Tensor, ...]:
            classifier = Classifier(self._engine, self.card, TAG, Settings(max_images=8))
            try:
                checked = open_inference.check_request(classifier, open_inference.Request(inputs, tuple(outputs)))
                return await open_inference.infer(classifier, checked, RequestRecord("r"))
            finally:
                await classifier.close()

        return {tensor.name: tensor for tensor in asyncio.run(call())}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("model"))


def png(picture: NDArray[np.uint8]) -> bytes:
    return encode_png(picture[:, :, 0])


def image(*elements: bytes, shape: tuple[int, ...] | None = None) -> Input:
    return Input("image", "BYTES", (len(elements),) if shape is None else shape, elements)


def pixels(data: Any) -> Input:
    return Input("pixels", "UINT8", SHAPE, data)


def test_each_image_keeps_its_row(model: Model) -> None:
    answer = model.infer(image(*(png(tiny_picture(label)) for label in (2, 0, 3))))
    assert answer["probabilities"].shape == (3, 4)
    rows = np.frombuffer(answer["probabilities"].raw(), "<f4").reshape(3, 4)
    assert rows.argmax(axis=1).tolist() == [2, 0, 3]
    assert rows.sum(axis=1) == pytest.approx([1, 1, 1])
    assert answer["label"].values == [model.card.classes[label].encode() for label in (2, 0, 3)]
    assert answer["decision"].values == [b"accept"] * 3
    assert answer["confidence"].values == pytest.approx(rows.max(axis=1))


def test_raw_and_typed_elements_are_read_alike(model: Model) -> None:
    images = [png(tiny_picture(1)), png(tiny_picture(2))]
    assert model.infer(Input("image", "BYTES", (2,), pack_bytes(images))) == model.infer(image(*images))


def test_a_rejected_and_an_unfamiliar_image_have_an_empty_label_and_confidence_zero(model: Model) -> None:
    answer = model.infer(image(png(NARROW), png(unfamiliar_picture()), png(tiny_picture(1))))
    assert answer["decision"].values == [b"reject", b"refer", b"accept"]
    assert answer["label"].values == [b"", b"", b"large_cell_carcinoma"]
    assert answer["confidence"].values[:2] == [0.0, 0.0]
    assert answer["confidence"].values[2] > 0.25
    texts = {name: [json.loads(text) for text in answer[name].values] for name in ("reasons", "warnings")}
    assert texts == {
        "reasons": [["not_chest_ct"], ["unfamiliar"], []],
        "warnings": [["meaningless_probabilities"], ["meaningless_probabilities"], []],
    }
    assert [json.loads(text) for text in answer["prediction_set"].values][:2] == [[], []]
    assert answer["probabilities"].shape == (3, 4)


def test_the_probability_of_a_chest_ct_comes_beside_the_ood_score(model: Model) -> None:
    answer = model.infer(image(png(NARROW), png(unfamiliar_picture()), png(tiny_picture(1))))
    assert answer["chest_ct"].datatype == "FP32"
    found = list(zip(answer["ood_score"].values, answer["chest_ct"].values, strict=True))
    for (ood_score, chest_ct), picture in zip(found[1:], (unfamiliar_picture(), tiny_picture(1)), strict=True):
        assert (ood_score, chest_ct) == pytest.approx(tiny_scores(picture)[1:], rel=1e-5)
    assert found[0][1] < CHEST_CT_LIMIT


def test_reasons_and_the_classes_of_a_close_call_come_as_json(model: Model) -> None:
    answer = model.infer(image(png(np.maximum(tiny_picture(0), tiny_picture(3))), png(tiny_picture(1))))
    assert answer["decision"].values == [b"refer", b"accept"]
    assert [json.loads(element) for element in answer["reasons"].values] == [["two_cancers"], []]
    first, second = (json.loads(element) for element in answer["between"].values)
    assert (set(first), second) == ({"adenocarcinoma", "squamous_cell_carcinoma"}, [])


def test_costly_outputs_come_only_on_request(model: Model) -> None:
    images = image(png(tiny_picture(1)), png(NARROW))
    assert not {"heatmaps", "preview"} & model.infer(images).keys()
    answer = model.infer(images, outputs=["heatmaps", "label"])
    assert list(answer) == ["heatmaps", "label"]
    assert answer["heatmaps"].shape == (2, 4)
    assert all(element.startswith(b"\x89PNG") for element in answer["heatmaps"].values)


def test_pixels_give_the_image_s_scores_and_a_warning(model: Model) -> None:
    pictures = np.stack([tiny_picture(3), tiny_picture(1)])
    raw, flat, nested = (
        model.infer(Input("pixels", "UINT8", pictures.shape, data))
        for data in (pictures.tobytes(), pictures.ravel().tolist(), pictures.tolist())
    )
    images = model.infer(image(*map(png, pictures)))
    assert raw == flat == nested
    assert raw["probabilities"] == images["probabilities"]
    assert [json.loads(element) for element in raw["warnings"].values] == [["pixels_input"]] * 2
    assert [json.loads(element) for element in images["warnings"].values] == [[], []]


def test_one_bad_image_fails_the_call_and_is_named(model: Model) -> None:
    good = png(tiny_picture(1))
    with pytest.raises(InvalidImage, match=r"image\[1\]: expected a PNG") as caught:
        model.infer(image(good, b"bad", good))
    assert caught.value.code == "undecodable_image"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        pytest.param([], "exactly one of 'image' and 'pixels', got none", id="no input"),
        pytest.param([image(b"1"), Input("pixels", "UINT8", SHAPE, bytes(1024))], "exactly one", id="both"),
        pytest.param([image(b"1"), image(b"1")], "got 'image', 'image'", id="twice"),
        pytest.param([Input("x", "BYTES", (1,), [b"1"])], "got 'x'", id="unknown name"),
        pytest.param([Input("image", "UINT8", (1,), b"1")], "image: expected the datatype BYTES", id="datatype"),
        pytest.param([image(shape=(0,))], r"N of 1 to 8, got \[0\]", id="no image"),
        pytest.param([image(shape=())], r"expected the shape \[N\] .*got \[\]", id="no dimension"),
        pytest.param([image(b"1", shape=(-1,))], r"got \[-1\]", id="negative"),
        pytest.param([image(b"1", shape=(1, 1))], r"got \[1, 1\]", id="too many dimensions"),
        pytest.param([image(*[b"1"] * 9)], r"N of 1 to 8, got \[9\]", id="too many images"),
        pytest.param([image(b"1", shape=(2,))], r"expected 2 elements for the shape \[2\], got 1", id="count"),
        pytest.param([Input("image", "BYTES", (1,), b"\x05\0\0\0abc")], "ends at byte 9 of 7", id="raw length"),
        pytest.param([Input("image", "BYTES", (1,), b"\x05\0")], "element 0 ends", id="raw length cut"),
        pytest.param([Input("image", "BYTES", (2,), bytes(4000))], "at most 2 BYTES elements", id="raw count"),
        pytest.param([Input("pixels", "UINT8", (1, 8, 8, 1), bytes(64))], r"\[N, 32, 32, 1\]", id="pixels' size"),
        pytest.param([Input("pixels", "UINT8", SHAPE, b"1")], "expected 1024 elements", id="pixels' count"),
        pytest.param([pixels([256] * 1024)], "got 256 to 256", id="pixels' range"),
        pytest.param([pixels([-1, *[0] * 1023])], "got -1 to 0", id="pixels below 0"),
        pytest.param([pixels([10**400] * 1024)], "got a number of more than 18 digits to", id="400 digits"),
        pytest.param([pixels([10**5000] * 1024)], "got a number of more than 18 digits to", id="5000 digits"),
        pytest.param([pixels([0.0] * 1024)], "whole numbers of 0 to 255, got a fraction", id="fractions"),
        pytest.param([pixels([True] * 1024)], "got true or false", id="booleans"),
        pytest.param([pixels([None, *[0] * 1023])], "got null", id="null"),
        pytest.param([pixels([{}, "", *[0] * 1022])], "got an object and text", id="objects and text"),
        pytest.param([pixels([0, [0], *[0] * 1022])], "got a list", id="a list among numbers"),
        pytest.param([pixels([])], "expected 1024 elements .*got 0", id="nothing"),
        pytest.param([pixels([[]])], "got a list of 0 elements at depth 1", id="an empty list"),
        pytest.param([pixels([[[[0]] * 32] * 31])], "got a list of 31 elements at depth 1", id="a row too few"),
        pytest.param([pixels([[[[0]] * 32] * 31 + [[[0]] * 33]])], "list of 33 elements at depth 2", id="ragged"),
        pytest.param([pixels([[[[0]] * 32] * 31 + [0]])], "else than a list at depth 2", id="a number for a row"),
        pytest.param([pixels([["0" * 32] * 32])], "else than a list at depth 2", id="text for a pixel"),
        pytest.param([pixels([[[[[0]]] * 32] * 32])], "got a list", id="one bracket too many"),
        pytest.param([Input("image", "BYTES", (1,), [["aGk="]])], r"image\[0\]: .* in base64", id="nested image"),
        pytest.param([Input("image", "BYTES", (1,), ["\U0001f600" * 99])], "only ASCII", id="emoji for base64"),
        pytest.param([image(b"1", shape=(10**400,))], r"got \[a number of more than 18 digits\]", id="huge shape"),
        pytest.param([image(b"1", shape=(2**32, 2**32))], r"got \[4294967296, 4294967296\]", id="overflow"),
        pytest.param([image(b"1", shape=(1,) * 64)], r"got \[1, 1, 1, 1, 1, 1, 1, 1, \.\.\.\]", id="dimensions"),
        pytest.param([Input("x" * 10**6, "BYTES", (1,), [b"1"])], r"got '(x{64})\.\.\.'$", id="long name"),
        pytest.param([Input("image", "x" * 10**6, (1,), [b"1"])], r"got '(x{64})\.\.\.'$", id="long datatype"),
    ],
)  # fmt: skip
def test_a_wrong_request_gets_what_was_expected(model: Model, inputs: list[Input], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        model.infer(*inputs)


def test_text_of_different_lengths_takes_little_memory(model: Model) -> None:
    tensor = pixels(["a" * 10_000, *[""] * 1023])  # as an array: 40 MB
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="got text"):
            model.infer(tensor)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_an_unknown_output_gets_the_names_of_all(model: Model) -> None:
    with pytest.raises(InvalidRequest, match=r"expected some of probabilities, .*got 'logits'"):
        model.infer(image(b"1"), outputs=["label", "logits"])


@pytest.mark.parametrize(("name", "version"), [("other", ""), ("chestct", "abd"), ("", "")])
def test_another_model_or_version_is_unknown(name: str, version: str) -> None:
    with pytest.raises(open_inference.UnknownModel):
        open_inference.check_model(tiny_card(), TAG, name, version)


@pytest.mark.parametrize("version", ["", "abc"])
def test_the_served_model_is_found_with_and_without_its_version(version: str) -> None:
    open_inference.check_model(tiny_card(), TAG, "chestct", version)


def test_metadata_describes_what_infer_takes_and_gives(model: Model) -> None:
    about = open_inference.metadata(model.card, TAG)
    assert (about.name, about.versions) == ("chestct", ("abc",))
    assert {spec.name: (spec.datatype, spec.shape) for spec in about.inputs} == {
        "image": ("BYTES", (-1,)),
        "pixels": ("UINT8", (-1, SIZE, SIZE, 1)),
    }
    answer = model.infer(image(*map(png, (tiny_picture(0), NARROW))), outputs=[spec.name for spec in about.outputs])
    for spec in about.outputs:
        assert answer[spec.name].datatype == spec.datatype
        assert answer[spec.name].shape == tuple(2 if size == -1 else size for size in spec.shape)
    assert json.loads(about.properties["classes"]) == list(model.card.classes)
    assert "Not a medical device" in about.properties["disclaimer"]


@pytest.mark.parametrize("elements", [[], [b""], [b"a", b"", bytes(300)]])
def test_bytes_elements_survive_their_raw_form(elements: list[bytes]) -> None:
    assert unpack_bytes(pack_bytes(elements)) == elements


def test_a_bytes_element_is_framed_by_its_little_endian_length() -> None:
    assert pack_bytes([b"abc"]) == b"\x03\0\0\0abc"
