"""The four classes, in the order of every label, logit and probability."""

from typing import Final

TITLES: Final = {
    "adenocarcinoma": "Adenocarcinoma",
    "large_cell_carcinoma": "Large cell carcinoma",
    "normal": "Normal (no cancer)",
    "squamous_cell_carcinoma": "Squamous cell carcinoma",
}
CLASSES: Final = tuple(TITLES)
NORMAL: Final = "normal"


def label_of(folder: str) -> int | None:
    """Index into CLASSES of a class folder's name, or None.

    The data set names a class's folder differently in each split (`adenocarcinoma`,
    `adenocarcinoma_left.lower.lobe_T2_N0_M0_Ib`), so the name's beginning decides, never its sorted position.
    """
    name = folder.lower().replace(".", "_")
    return next((index for index, prefix in enumerate(CLASSES) if name.startswith(prefix)), None)
