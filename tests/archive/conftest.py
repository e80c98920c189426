"""A tiny model, and folders of its pictures."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from archive.models import Model
from archive.scoring import Scorer
from chestct.image import encode_png
from chestct.store import CARD, GRAPH, tag_of
from tests.graphs import tiny_model, tiny_picture

Fill = Callable[[Path, int], list[str]]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("archive-model")
    card = tiny_model(folder)
    return Model(tag_of(folder / CARD), folder / GRAPH, card)


@pytest.fixture(scope="session")
def scorer(model: Model) -> Iterator[Scorer]:
    scorer = Scorer(model, by_series=True)
    yield scorer
    scorer.close()


@pytest.fixture(scope="session")
def fill() -> Fill:
    """Writes that many pictures into a new folder. The last is broken. Returns their names in order."""

    def write(folder: Path, count: int) -> list[str]:
        folder.mkdir(parents=True)
        for number in range(count - 1):
            (folder / f"{number:05}.png").write_bytes(encode_png(tiny_picture(number % 4, marks=number % 97)[:, :, 0]))
        (folder / "broken.png").write_bytes(b"no picture")
        return sorted(path.name for path in folder.iterdir())

    return write
