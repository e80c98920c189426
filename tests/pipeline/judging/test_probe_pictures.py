"""The pictures that the probe is fitted on, and those that are held out."""

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.core import paths
from pipeline.core.errors import DataError
from pipeline.images.made_scans import SCANS
from pipeline.images.phantoms import draw_phantom
from pipeline.judging import other_pictures, probe_pictures
from pipeline.judging.other_pictures import draw_other_pictures
from pipeline.judging.probe_pictures import RESTYLED, ProbePictures, gather
from pipeline.network.augmentation import Source
from tests.pipeline.conftest import small_params

SIDE = 32
PHANTOMS = [draw_phantom(index % 4, np.random.default_rng(index)).convert("L") for index in range(6)]
POOL = [probe_pictures._source(image.copy()) for image in PHANTOMS]
PIXELS = np.stack([np.asarray(image.resize((SIDE, SIDE)))[..., np.newaxis] for image in PHANTOMS])


def png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of two chest CT, one of them deeper, and a folder of one photograph."""
    chest, other = tmp_path / "lungs", tmp_path / "gardens"
    (chest / "deeper").mkdir(parents=True)
    other.mkdir()
    (chest / "a.png").write_bytes(png(PHANTOMS[0]))
    (chest / "deeper" / "b.png").write_bytes(png(PHANTOMS[1]))
    (chest / ".hidden").write_text("no picture")
    (other / "c.png").write_bytes(png(Image.fromarray(np.tile(np.arange(96, dtype=np.uint8), (64, 1)))))
    return chest, other


def test_the_pictures_are_of_the_pool_of_other_kinds_and_of_folders(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_pictures, "COUNT", 2)
    params = small_params(trust__chest_ct=[str(folders[0])], trust__not_chest_ct=[str(folders[1])])
    others = [
        (group, content) for group, content in draw_other_pictures(PIXELS[:2], PHANTOMS[:2], 1) if group != "noise"
    ]
    found = gather(params, POOL, PIXELS, [*others, ("inverted_ct", png(PHANTOMS[0])), ("noise", png(PHANTOMS[2]))])
    pictures = ProbePictures(*(found[name] for name in ProbePictures._fields))
    assert pictures.pixels.dtype == np.uint8
    assert pictures.pixels.shape == (len(pictures.kinds), SIDE, SIDE, 1)
    kinds = dict(zip(*np.unique(pictures.kinds, return_counts=True), strict=True))
    assert (kinds[RESTYLED], kinds["noise"], kinds["lungs"], kinds["gardens"]) == (6, 2, 8, 4)
    assert {kind: kinds[kind] for kind in SCANS} == dict.fromkeys(SCANS, 3)
    assert set(pictures.kinds[pictures.chest]) == {RESTYLED, "lungs"}
    assert pictures.rows[pictures.kinds == RESTYLED].tolist() == [0, 1, 2, 3, 4, 5]
    assert (pictures.rows[np.isin(pictures.kinds, ["noise", "lungs", "gardens"])] == -1).all()
    assert "inverted_ct" not in kinds, "it does show chest CT"


def test_the_card_names_a_folder_and_the_number_and_digest_of_its_pictures(
    folders: tuple[Path, Path], workspace: Path
) -> None:
    params = small_params(trust__chest_ct=[str(folders[0])])
    found = gather(params, POOL, PIXELS, [])
    paths.PROBE_PICTURES.parent.mkdir(parents=True)
    np.savez(paths.PROBE_PICTURES, **found)
    (source,) = probe_pictures.read_sources()
    assert (source.name, source.chest_ct, source.images) == ("lungs", True, 2)
    digests = sorted(hashlib.sha256(png(image)).hexdigest() for image in PHANTOMS[:2])
    assert source.digest == hashlib.sha256("".join(digests).encode()).hexdigest()
    assert len(ProbePictures.load().kinds) == len(found["kinds"])


def test_without_folders_there_are_no_sources() -> None:
    assert len(gather(small_params(), POOL, PIXELS, [])["sources"]) == 0


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_a_folder_without_pictures_or_with_a_broken_one_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content:
        (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png" if content else str(tmp_path)):
        gather(small_params(trust__not_chest_ct=[str(tmp_path)]), POOL, PIXELS, [])


def test_the_probe_is_fitted_without_held_out_slices_what_is_made_of_them_and_a_kind() -> None:
    """Each picture has a direction of its own, so that the probe has weight there only if it was fitted on it."""
    kinds = np.array([RESTYLED, RESTYLED, "made_heads", "made_heads", "text", "noise"])
    rows = np.array([0, 1, 0, 1, -1, -1])
    pictures = ProbePictures(np.zeros((6, 1, 1, 1), np.uint8), kinds, kinds == RESTYLED, rows)
    directions = np.eye(8, dtype=np.float32)
    probe = pictures.fit(directions[:2], directions[2:], np.array([True, False]), without="text")
    assert np.sign(np.round(probe.weights, 4)).tolist() == [1, 0, 1, 0, -1, 0, 0, -1]


def test_a_source_is_shrunk_and_has_its_body() -> None:
    source = probe_pictures._source(Image.fromarray(np.zeros((900, 600), np.uint8)))
    assert isinstance(source, Source)
    assert source.picture.size == (256, 384)
    assert source.body.bodies == 0
