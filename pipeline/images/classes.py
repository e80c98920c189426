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
    """The index in CLASSES of a class folder, or None if the folder belongs to no class.

    A class folder begins with the name of its class, but each split of the data set spells the rest differently, for
    example `adenocarcinoma` and `adenocarcinoma_left.lower.lobe_T2_N0_M0_Ib`.
    """
    name = folder.lower().replace(".", "_")
    return next((index for index, prefix in enumerate(CLASSES) if name.startswith(prefix)), None)
