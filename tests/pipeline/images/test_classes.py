import pytest

from pipeline.images.classes import CLASSES, label_of


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("adenocarcinoma", "adenocarcinoma"),
        ("adenocarcinoma_left.lower.lobe_T2_N0_M0_Ib", "adenocarcinoma"),
        ("large.cell.carcinoma", "large_cell_carcinoma"),
        ("large.cell.carcinoma_left.hilum_T2_N2_M0_IIIa", "large_cell_carcinoma"),
        ("Normal", "normal"),
        ("squamous.cell.carcinoma_left.hilum_T1_N2_M0_IIIa", "squamous_cell_carcinoma"),
    ],
)
def test_the_beginning_of_a_folders_name_gives_the_class(folder: str, name: str) -> None:
    label = label_of(folder)
    assert label is not None
    assert CLASSES[label] == name


@pytest.mark.parametrize("folder", ["carcinoma", "small.cell.carcinoma", "ab_normal", ""])
def test_other_folders_belong_to_no_class(folder: str) -> None:
    assert label_of(folder) is None
