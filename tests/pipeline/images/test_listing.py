"""The listing of a folder of images takes each image, and names what it leaves out."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.errors import DataError
from pipeline.images import listing as module
from pipeline.images.listing import list_source, require_data_set

WHERE = "train/normal"


def a_subfolder(folder: Path) -> tuple[str, list[str]]:
    """Add two levels of folders with a link back to the first, which must not be followed."""
    deep = folder / "patient 7" / "series 1"
    deep.mkdir(parents=True)
    for path in (deep / "0.png", deep.parent / "1.png"):
        path.write_bytes(b"x")
    (deep / "back").symlink_to(folder)
    (deep.parent / "series 2").mkdir()
    (folder / "patient 8").mkdir()
    names = ["patient 7/1.png", "patient 7/series 1/0.png", "patient 7/series 1/back"]
    names += ["patient 7/series 2", "patient 8"]
    return module.DEEPER, [f"{WHERE}/{name}" for name in names]


def a_link_to_nothing(folder: Path) -> tuple[str, list[str]]:
    (folder / "0.png").symlink_to("/nonexistent/annex/object")
    (folder / "1.png").symlink_to("1.png")
    return module.DANGLING, [f"{WHERE}/0.png", f"{WHERE}/1.png"]


def a_pipe_and_a_device(folder: Path) -> tuple[str, list[str]]:
    os.mkfifo(folder / "pipe.png")
    (folder / "null.png").symlink_to("/dev/null")
    return module.SPECIAL, [f"{WHERE}/null.png", f"{WHERE}/pipe.png"]


def an_unreadable_file(folder: Path) -> tuple[str, list[str]]:
    (folder / "0.png").symlink_to("/proc/self/mem")  # a file whose first byte no one can read, not even root
    return module.UNREADABLE, [f"{WHERE}/0.png"]


def no_image(folder: Path) -> tuple[str, list[str]]:
    (folder / "labels.csv").write_bytes(b"file,label\n")
    (folder / "empty").write_bytes(b"")
    return module.NO_IMAGE, [f"{WHERE}/empty", f"{WHERE}/labels.csv"]


def hidden_and_the_systems(folder: Path) -> tuple[str, list[str]]:
    names = [".DS_Store", "._0.png", "Thumbs.db", "desktop.ini"]
    for name in names:
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / ".ipynb_checkpoints").mkdir()
    return module.HIDDEN, sorted(f"{WHERE}/{name}" for name in [*names, ".ipynb_checkpoints"])


def beside_the_classes(folder: Path) -> tuple[str, list[str]]:
    next(folder.iterdir()).rename(folder.parent / "0.png")
    return module.OUTSIDE, ["train/0.png"]


def beside_the_splits(folder: Path) -> tuple[str, list[str]]:
    root = folder.parent.parent
    (root / "README.md").write_bytes(b"x")
    (root / "masks").mkdir()
    return module.BESIDE, ["README.md", "masks"]


def a_folder_of_no_class(folder: Path) -> tuple[str, list[str]]:
    for name in ("sarcoma", "benign"):
        (folder.parent / name).mkdir()
    return module.UNKNOWN, ["train/benign", "train/sarcoma"]


@pytest.mark.parametrize(
    "spoil",
    [
        a_subfolder,
        a_link_to_nothing,
        a_pipe_and_a_device,
        an_unreadable_file,
        no_image,
        hidden_and_the_systems,
        beside_the_classes,
        beside_the_splits,
        a_folder_of_no_class,
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_each_entry_that_is_left_out_is_listed_under_its_reason(
    data_set: Path, spoil: Callable[[Path], tuple[str, list[str]]]
) -> None:
    reason, names = spoil(data_set / WHERE)
    listing = list_source(data_set)
    assert listing.left_out == {reason: names}
    assert all(repr(name) in listing.summary for name in names)
    assert listing.lost == (0 if reason in (module.HIDDEN, module.BESIDE) else len(names))


def test_an_image_is_taken_whatever_its_name_and_links(data_set: Path) -> None:
    folder = data_set / WHERE
    image = min(folder.glob("*.png"))
    image.rename(elsewhere := data_set.parent / "object")
    for name in ("UPPER.PNG", "no suffix", "photo.jpeg", "a\nb.png"):
        (folder / name).symlink_to(elsewhere)
    (folder / "broken.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")  # prepare's audit tells
    os.link(elsewhere, folder / "hard.png")
    listing = list_source(data_set)
    assert listing.left_out == {}
    assert {f"{WHERE}/{name}" for name in ("UPPER.PNG", "no suffix", "photo.jpeg", "a\nb.png", "hard.png")} <= set(
        listing.images
    )


def test_two_names_that_are_one_in_utf8_do_not_hide_each_other(data_set: Path) -> None:
    folder = data_set / WHERE
    content = min(folder.glob("*.png")).read_bytes()
    (folder / r"\xf6.png").write_bytes(content)
    with open(os.fsencode(folder) + b"/\xf6.png", "wb") as file:  # noqa: PTH123 - bytes
        file.write(content)
    listing = list_source(data_set)
    assert listing.left_out == {module.SAME_NAME: [f"{WHERE}/" + r"\xf6.png"]}


def test_the_summary_is_one_short_line_whatever_the_names(data_set: Path) -> None:
    for index in range(1000):
        (data_set / WHERE / f"line\nbreak {index:03d}").write_bytes(b"x")
    listing = list_source(data_set)
    assert "1000 not taken, neither PNG nor JPEG" in listing.summary
    assert "and 995 more" in listing.summary
    assert "\n" not in listing.summary
    assert len(listing.summary) < 400
    with pytest.raises(DataError, match="1000 of"):
        require_data_set(listing, 0.05)


def test_a_folder_that_cannot_be_read_is_named(data_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"the folder can't be read \(Permission denied\)"):
        list_source(data_set)
