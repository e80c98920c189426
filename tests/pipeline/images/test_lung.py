"""The share of lung in a slice: gas and fat are none."""

import numpy as np
import pytest

from chestct.standard_picture import AIR, TISSUE
from pipeline.images.lung import lung_share


def picture() -> np.ndarray:
    """A body of 100 x 200 pixels."""
    levels = np.full((256, 256, 1), AIR, np.uint8)
    levels[60:160, 20:220] = TISSUE
    return levels


def test_the_larger_lung_counts_as_a_share_of_the_body() -> None:
    chest = picture()
    chest[80:140, 40:90] = AIR + 10  # 3000 of 20000 pixels
    chest[80:130, 140:190] = AIR  # 2500, of the level of air
    assert lung_share(chest) == pytest.approx(0.15)


def test_gas_in_the_bowel_is_no_lung() -> None:
    abdomen = picture()
    for left in range(30, 210, 12):
        abdomen[70:80, left : left + 8] = AIR
    assert lung_share(abdomen) == pytest.approx(80 / 20_000)


def test_fat_is_no_lung() -> None:
    fat = picture()
    fat[80:140, 40:90] = AIR + 0.4 * (TISSUE - AIR)
    assert lung_share(fat) == 0


def test_a_picture_without_a_body_has_no_lung() -> None:
    assert lung_share(np.full((256, 256, 1), AIR, np.uint8)) == 0
    assert lung_share(np.full((256, 256, 1), TISSUE, np.uint8)) == 0
