"""The classes, in the order of every label, logit and probability. params.yaml names them.

Params.read takes them for the whole process. Until then, they are those of the public data set.
"""

from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from chestct.document import Frozen

ANY_CANCER: Final = "any_cancer"
"""Label of a slice of a cancer patient whose kind of cancer is not known. No class may have this name."""
CLASSES: Final = ("adenocarcinoma", "large_cell_carcinoma", "normal", "squamous_cell_carcinoma")
"""Those of the public data set, of the released model and of the phantoms."""
NORMAL: Final = "normal"
TITLES: Final = {
    "adenocarcinoma": "Adenocarcinoma",
    "large_cell_carcinoma": "Large cell carcinoma",
    "normal": "Normal (no cancer)",
    "squamous_cell_carcinoma": "Squamous cell carcinoma",
}

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]


class Classes(Frozen):
    names: Annotated[tuple[Name, ...], Field(min_length=2, max_length=10)]
    normal: str
    """The class that is no cancer. Every other class counts as one."""
    titles: dict[str, str]
    """For people. A class without a title is called by its name."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is named twice")
        if ANY_CANCER in self.names:
            raise ValueError(f"{ANY_CANCER} is no name of a class; it is the label of a cancer of unknown kind")
        if self.normal not in self.names:
            raise ValueError(f"normal should be one of {', '.join(self.names)}, and is {self.normal}")
        if unknown := sorted(set(self.titles) - set(self.names)):
            raise ValueError(f"titles names {', '.join(unknown)}, which is no class")
        return self


_used = Classes(names=CLASSES, normal=NORMAL, titles=TITLES)


def use_classes(classes: Classes) -> None:
    """Take these classes for the rest of the process: it has one set of classes, and most functions need them."""
    global _used
    _used = classes


def class_names() -> tuple[str, ...]:
    return _used.names


def class_count() -> int:
    return len(_used.names)


def normal_name() -> str:
    """The class that is no cancer."""
    return _used.normal


def normal_index() -> int:
    """Index of the class that is no cancer."""
    return _used.names.index(_used.normal)


def titles() -> dict[str, str]:
    """What people call each class, such as `Large cell carcinoma`, in the order of the classes."""
    return {name: _used.titles.get(name) or name.replace("_", " ").capitalize() for name in _used.names}


def label_of(folder: str) -> int | None:
    """The index of the class that a class folder belongs to, or None if it belongs to no class.

    A class folder begins with the name of its class, but each split of the data set spells the rest differently, for
    example `adenocarcinoma` and `adenocarcinoma_left.lower.lobe_T2_N0_M0_Ib`. If several names fit, the longest counts.
    """
    name = folder.lower().replace(".", "_")
    found = [index for index, prefix in enumerate(_used.names) if name.startswith(prefix)]
    return max(found, key=lambda index: len(_used.names[index]), default=None)
