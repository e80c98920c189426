"""The class of an image follows from its folder's name."""

from collections.abc import Iterator

import pytest

from pipeline.core.params import Params
from pipeline.images.classes import (
    CLASSES,
    NORMAL,
    TITLES,
    Classes,
    class_count,
    class_names,
    label_of,
    normal_index,
    normal_name,
    titles,
    use_classes,
)
from tests.server import ROOT

OWN = Classes(names=("benign", "benign_nodule", "clear"), normal="clear", titles={"clear": "Nothing found"})


@pytest.fixture
def own() -> Iterator[None]:
    """The process uses the classes of OWN until the test ends."""
    use_classes(OWN)
    yield
    use_classes(Classes(names=CLASSES, normal=NORMAL, titles=TITLES))


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


def test_without_other_classes_they_are_those_of_the_public_set_and_of_params_yaml() -> None:
    assert (class_names(), normal_name(), class_names()[normal_index()], class_count()) == (CLASSES, NORMAL, NORMAL, 4)
    assert titles() == TITLES
    Params.read(ROOT / "params.yaml")
    assert (class_names(), normal_name(), titles()) == (CLASSES, NORMAL, TITLES)


def test_own_classes_have_their_order_their_normal_and_titles(own: None) -> None:
    assert (class_names(), normal_name(), normal_index(), class_count()) == (OWN.names, "clear", 2, 3)
    assert titles() == {"benign": "Benign", "benign_nodule": "Benign nodule", "clear": "Nothing found"}


def test_of_two_names_that_fit_a_folder_the_longest_counts(own: None) -> None:
    assert [label_of(name) for name in ("benign", "Benign.nodule_left", "benign_cyst", "clear", "normal")] == [
        *(0, 1, 0, 2, None)
    ]
