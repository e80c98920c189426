"""Images of other sources with partial labels."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.core.params import ExtraSource
from pipeline.images.classes import CLASSES, NORMAL
from pipeline.images.extra import read_extra
from pipeline.images.phantoms import draw_phantom
from tests.dicom import dicom_file


def test_without_other_sources_the_arrays_are_empty() -> None:
    arrays = read_extra(())
    assert {name: array.shape for name, array in arrays.items()} == {
        "sources": (0, 384, 384),
        "source_sizes": (0, 2),
        "allowed": (0, 4),
        "sha256": (0,),
    }


def test_any_cancer_allows_each_cancer_and_a_class_only_itself(tmp_path: Path) -> None:
    for folder in ("patients", "healthy"):
        (tmp_path / folder).mkdir()
        draw_phantom(0, np.random.default_rng(0)).save(tmp_path / folder / "one.png")
    source = ExtraSource(path=tmp_path, labels={"patients": "any_cancer", "healthy": "normal"})
    arrays = read_extra((source,))
    assert arrays["allowed"].tolist() == [[name != NORMAL for name in CLASSES], [name == NORMAL for name in CLASSES]]
    width, height = arrays["source_sizes"][0]
    assert arrays["sources"][0, :height, :width].std() > 10
    assert not arrays["sources"][0, height:].any()


def test_dicom_files_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "patients").mkdir()
    (tmp_path / "patients" / "one.dcm").write_bytes(dicom_file(np.eye(8, dtype=np.uint8)))
    arrays = read_extra((ExtraSource(path=tmp_path, labels={"patients": "any_cancer"}),))
    assert arrays["source_sizes"].tolist() == [[8, 8]]


def test_a_missing_folder_or_a_file_that_is_no_slice_is_named(tmp_path: Path) -> None:
    source = ExtraSource(path=tmp_path, labels={"patients": "any_cancer"})
    with pytest.raises(DataError, match=r"no images in .*patients"):
        read_extra((source,))
    (tmp_path / "patients").mkdir()
    (tmp_path / "patients" / "notes.txt").write_text("seen", encoding="utf-8")
    with pytest.raises(DataError, match=r"notes.txt.*remove the file"):
        read_extra((source,))
