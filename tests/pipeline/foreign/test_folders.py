"""Folders and file names say what is known of a slice, and of which patient it is."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.errors import DataError
from pipeline.foreign.folders import (
    CANCER,
    HEALTHY,
    KINDS,
    NOT_CHEST,
    OTHER,
    SliceFile,
    kind_of,
    list_slices,
    read_overrides,
    site_label_of,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "abroad"


@pytest.fixture
def put(folder: Path) -> Callable[..., None]:
    """Make empty files at these paths."""

    def make(*names: str) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()

    return make


def listed(folder: Path) -> dict[str, SliceFile]:
    return {file.name: file for file in list_slices(folder, kind_of, read_overrides(folder, None, KINDS))}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(
            (name, CANCER)
            for name in ("LUAD", "LUSC", "cancer", "adenocarcinoma", "large.cell.carcinoma_left", "NSCLC")
        ),
        *((name, HEALTHY) for name in ("normal", "Healthy", "no-finding")),
        *((name, OTHER) for name in ("other_disease", "COVID-19", "pneumonia")),
        *((name, NOT_CHEST) for name in ("not_chest", "Not chest CT")),
        *((name, None) for name in ("tcga", "slices", "normal_patient_1", "cancer_and_normal")),
    ],
)
def test_a_folders_name_says_what_is_known(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("LUSC", "squamous_cell_carcinoma"),
        ("luad", "adenocarcinoma"),
        ("adenocarcinoma_left.lower.lobe_T2_N0_M0_Ib", "adenocarcinoma"),
        ("large.cell.carcinoma", "large_cell_carcinoma"),
        ("normal", "normal"),
        ("cancer", "cancer"),
        ("not_chest", None),
        ("covid", None),
    ],
)
def test_a_sites_labels_are_the_classes_or_any_cancer(name: str, label: str | None) -> None:
    assert site_label_of(name) == label


def test_source_kind_and_patient_come_from_folders_and_names(folder: Path, put: Callable[..., None]) -> None:
    put(
        "tcga/LUSC/TCGA-34-5231_21e043e0.dcm",
        "luna16/normal/normal_patient_1_efb99f94.png",
        "head_ct/not_chest/2b3c018d.png",
        "clinic/covid/patient 7/series/IM0001",
        "normal/a.png",
        "README.md",
        "tcga/SOURCES.csv",
        "tcga/LUSC/notes.txt",
        "tcga/LUSC/.hidden.png",
    )
    assert {name: file[2:] for name, file in listed(folder).items()} == {
        "tcga/LUSC/TCGA-34-5231_21e043e0.dcm": ("tcga", CANCER, "TCGA-34-5231", False),
        "luna16/normal/normal_patient_1_efb99f94.png": ("luna16", HEALTHY, "normal_patient_1", False),
        "head_ct/not_chest/2b3c018d.png": ("head_ct", NOT_CHEST, "2b3c018d", True),
        "clinic/covid/patient 7/series/IM0001": ("clinic", OTHER, "patient 7", False),
        "normal/a.png": ("abroad", HEALTHY, "a", True),
    }


def test_the_deepest_known_folder_decides(folder: Path, put: Callable[..., None]) -> None:
    put("covid/normal/1.png", "covid/2.png")
    assert {name: (file.source, file.known) for name, file in listed(folder).items()} == {
        "covid/normal/1.png": ("covid", HEALTHY),
        "covid/2.png": ("abroad", OTHER),
    }


def test_a_folder_of_which_nothing_is_known_is_refused_in_one_line(folder: Path, put: Callable[..., None]) -> None:
    put("tcga/LUSC/1.dcm", "mystery/1.png")
    (folder / "puzzle").mkdir()
    (folder / "puzzle" / "IM1").write_bytes(bytes(128) + b"DICM")
    (folder / "puzzle" / "LICENCE").write_bytes(b"Free")
    with pytest.raises(DataError, match="nothing is known of 'mystery', 'puzzle'; name a folder") as refused:
        listed(folder)
    assert "\n" not in str(refused.value)


def test_sources_yaml_says_what_is_known_by_path_or_name(folder: Path, put: Callable[..., None]) -> None:
    put("a/mystery/1.png", "b/mystery/2.png", "normal/3.png")
    (folder / "sources.yaml").write_text(
        "mystery: other disease\nb/mystery: not chest CT\nnormal: cancer patient\n", encoding="utf-8"
    )
    assert [(file.known, file.source) for file in listed(folder).values()] == [
        (OTHER, "a"),
        (NOT_CHEST, "b"),
        (CANCER, "abroad"),
    ]


@pytest.mark.parametrize("text", ["- a\n", "a: tumour\n", "a: [b", "a: {b: c}\n"])
def test_a_wrong_sources_file_is_refused_with_what_it_may_say(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "sources.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"sources\.yaml: ") as refused:
        read_overrides(folder, None, KINDS)
    assert "\n" not in str(refused.value)


def test_a_missing_folder_a_missing_file_and_no_slices_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        list_slices(folder, kind_of, {})
    with pytest.raises(DataError, match="can't be read"):
        read_overrides(folder, tmp_path / "missing.yaml", KINDS)
    folder.mkdir()
    with pytest.raises(DataError, match="no slices"):
        list_slices(folder, kind_of, {})


def test_links_are_followed_but_not_in_a_circle(folder: Path, put: Callable[..., None], tmp_path: Path) -> None:
    put("tcga/LUAD/1.dcm")
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "linked").symlink_to(folder / "tcga")
    assert list(listed(tmp_path / "view")) == ["linked/LUAD/1.dcm"]
    (folder / "tcga" / "circle").symlink_to(folder)
    with pytest.raises(DataError, match="folders deep"):
        listed(folder)
