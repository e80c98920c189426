"""The client of the service, against the real one."""

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dicom_node.failures import GivenUp, Later
from dicom_node.score import Answer, Scorer, most_suspicious
from dicom_node.settings import Settings
from dicom_node.slices import Choice, choose, describe
from tests.dicom_node.results import answer
from tests.dicom_node.running import free_ports
from tests.dicom_node.slices import ct_slice, written

Make = Callable[..., Settings]


@pytest.fixture
def chosen(tmp_path: Path, drawn: Callable[[str], NDArray[np.uint8]]) -> Callable[..., Choice]:
    """Writes slices of these classes as files and chooses them all. The argument None is an unreadable one."""

    def make(*labels: int | None) -> Choice:
        paths = []
        for number, label in enumerate(labels, 1):
            odd = {"RescaleSlope": None} if label is None else {}
            file = ct_slice(drawn(f"class-{label or 0}"), number=number, **odd)
            paths.append(tmp_path / f"s{number}.dcm")
            paths[-1].write_bytes(written(file))
        return choose([describe(path) for path in paths], 64)

    return make


@pytest.fixture
def scorer(settings: Make, service: str) -> Callable[..., Scorer]:
    return lambda **changes: Scorer(settings(**{"service": service, **changes}))


def test_each_slice_gets_its_own_answer_in_batches_of_any_size(
    scorer: Callable[..., Scorer], chosen: Callable[..., Choice], tmp_path: Path
) -> None:
    choice = chosen(0, 1, None, 2, 3)
    path_of = lambda name: tmp_path / f"{name}.dcm"  # noqa: E731 - the scorer asks for a function
    results = [
        scorer(**limits).score(choice, path_of, {}) for limits in ({}, {"batch_images": 2}, {"batch_bytes": 200_000})
    ]
    for result in results:
        labels = [result.answers[f"s{number}"].label for number in range(1, 6)]
        classes = result.model.classes
        assert labels == [classes[0], classes[1], None, classes[2], classes[3]]
        assert result.answers["s3"].error == "unsupported_dicom"
        assert result.explanation is not None
        assert result.explanation.name in ("s1", "s2", "s5")
    assert results[0].answers == results[1].answers == results[2].answers


def test_answers_of_an_earlier_attempt_are_not_asked_for_again(
    scorer: Callable[..., Scorer], chosen: Callable[..., Choice], tmp_path: Path
) -> None:
    asked: list[str] = []

    def path_of(name: str) -> Path:
        asked.append(name)
        return tmp_path / f"{name}.dcm"

    choice, known = chosen(0, 2), dict[str, Answer]()
    scorer().score(choice, path_of, known)
    asked.clear()
    scorer().score(choice, path_of, known)
    assert asked == ["s1"]  # for the heat map alone
    known["s2"] = known["s2"].model_copy(update={"model": "chestct:other", "label": "adenocarcinoma"})
    again = scorer().score(choice, path_of, known)
    assert again.answers["s2"].label == "normal"  # the answer of another model is not kept


def test_a_service_that_cannot_be_reached_is_for_later(
    settings: Make, chosen: Callable[..., Choice], tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    with pytest.raises(Later, match="can't be reached: ConnectionError"):
        Scorer(settings(service=f"http://127.0.0.1:{port}")).score(chosen(0), tmp_path.joinpath, {})


@pytest.mark.parametrize(("status", "header", "wait"), [(429, "7", 7.0), (503, "soon", None), (503, None, None)])
def test_a_busy_service_says_when_to_come_back(
    settings: Make, chosen: Callable[..., Choice], tmp_path: Path, status: int, header: str | None, wait: float | None
) -> None:
    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            if header is not None:
                self.send_header("Retry-After", header)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Busy) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(Later, match=f"the service answers {status}") as caught:
            Scorer(settings(service=f"http://127.0.0.1:{server.server_port}")).score(chosen(0), tmp_path.joinpath, {})
        thread.join()
    assert caught.value.wait == wait


def test_a_path_that_the_service_does_not_have_is_a_wrong_setting(
    scorer: Callable[..., Scorer], chosen: Callable[..., Choice], tmp_path: Path, service: str
) -> None:
    with pytest.raises(GivenUp, match="404 not_found"):
        scorer(service=f"{service}/other/").score(chosen(0), tmp_path.joinpath, {})


@pytest.mark.parametrize(
    ("answers", "top"),
    [
        ({"a": answer(0.1, 0.1, 0.7, 0.1), "b": answer(0.2, 0.2, 0.5, 0.1)}, "b"),
        ({"a": answer(0.1, 0.1, 0.7, 0.1), "b": answer(0.9, 0, 0.1, 0, label=None)}, "a"),
        ({"a": answer(0.1, 0, 0.9, 0, label=None), "b": answer(0.9, 0, 0.1, 0, label=None)}, "b"),
        ({"a": Answer(error="undecodable_image")}, None),
    ],
)
def test_the_slice_that_is_shown_has_a_label_if_any_has(answers: Any, top: str | None) -> None:
    assert most_suspicious(answers, "normal") == top
