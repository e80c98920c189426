"""Stage ingest: copies the images to data/raw, in Kaggle's layout, and writes the manifest of all files."""

import contextlib
import os
import shutil
import tempfile
import textwrap
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import kagglehub
from kagglehub.config import get_cache_folder
from tqdm import tqdm

from pipeline.core import paths, runner
from pipeline.core.errors import DataError
from pipeline.core.params import Data, Params
from pipeline.images.listing import in_utf8, list_source, require_data_set
from pipeline.images.manifest import SPLITS, Manifest
from pipeline.images.phantoms import draw_phantoms

DATA_SET: Final = "mohamedhanyyy/chest-ctscan-images"
STALL_SECONDS: Final = 60.0
"""A download that writes nothing for this long has failed. kagglehub sets no such limit."""

_WAYS_OUT: Final = (
    "give this machine access to Kaggle, or `make train DATA=folder` for a local copy, or `make demo` for phantoms"
)


def ingest(params: Params) -> None:
    """Write data/raw and data/manifest.json from data.source, unless both are up to date.

    LEFT_OUT and the last line of the output name the entries that are left out. Raises DataError if the images can't be
    fetched, listed or copied; data/raw and the manifest then stay as they were.
    """
    try:
        folder = _find_source(params.data)
        paths.RAW.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="ingest-", dir=paths.RAW.parent) as scratch:
            if folder is None:
                folder = Path(scratch) / "phantoms"
                draw_phantoms(folder, params.data.phantoms, params.seed)
            listing = list_source(folder)
            listing.write()
            require_data_set(listing, params.data.max_left_out)
            manifest = Manifest.of(listing.images)
            unchanged = _is_current(manifest)
            if not unchanged:
                _replace_raw(listing.images, Path(scratch))
                manifest.write()
    except OSError as error:
        raise DataError(f"cannot copy the images to {paths.RAW}: {error}") from error
    what = ", unchanged" if unchanged else f" from {params.data.source}, digest {manifest.digest[:12]}"
    print("; ".join(filter(None, (f"ingest: {len(listing.images)} files{what}", listing.summary))))


def _find_source(data: Data) -> Path | None:
    """The folder that holds the splits, or None if they have to be drawn."""
    match data.source:
        case "kaggle":
            return _find_splits(_download() if data.path is None else _local_folder(data.path))
        case "local":
            return _find_splits(_local_folder(data.path))
        case "synthetic":
            return None


def _download() -> Path:
    """Download Kaggle's data set, or find it in kagglehub's cache. Raises DataError if it can't be downloaded."""
    outcome: Future[str] = Future()

    def fetch() -> None:
        try:
            outcome.set_result(kagglehub.dataset_download(DATA_SET))
        except Exception as error:  # noqa: BLE001 - raised below as DataError
            outcome.set_exception(error)

    thread = threading.Thread(target=fetch, daemon=True)  # a stalled download must not keep the process alive
    thread.start()
    written = -1
    while thread.is_alive():
        thread.join(STALL_SECONDS)
        before, written = written, _bytes_below(Path(get_cache_folder()))
        if thread.is_alive() and written == before:
            raise DataError(f"Kaggle sent nothing for {STALL_SECONDS:.0f} seconds; {_WAYS_OUT}")
    if error := outcome.exception():
        reason = textwrap.shorten(str(error), 100, placeholder=" ...") or type(error).__name__
        raise DataError(f"no access to {DATA_SET} on Kaggle; {_WAYS_OUT} ({reason})") from error
    return Path(outcome.result())


def _bytes_below(folder: Path) -> int:
    """The size of all files below `folder`, except those that vanish meanwhile."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += Path(parent, name).stat().st_size
    return size


def _local_folder(path: Path | None) -> Path:
    if path is None:
        raise DataError("data.path is null; name the folder that holds train, valid and test: `make train DATA=folder`")
    folder = path.expanduser()
    if not folder.is_dir():
        raise DataError(f"{path}: no such folder (data.path)")
    return folder


def _find_splits(root: Path) -> Path:
    """Find the folder with the splits: `root` or a folder up to two levels below it, as in Kaggle's archive (Data/)."""
    for folder in (root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))):
        if (folder / "train").is_dir():
            return folder
    raise DataError(f"{root}: expected a folder that holds {', '.join(SPLITS)}")


def _is_current(manifest: Manifest) -> bool:
    """Whether data/raw already holds exactly these files."""
    try:
        if Manifest.read() != manifest:
            return False
    except DataError:
        return False
    files = (path for path in paths.RAW.rglob("*") if path.is_file())
    present = {in_utf8(path.relative_to(paths.RAW).as_posix()): path for path in files}
    return Manifest.of(present) == manifest


def _replace_raw(images: Mapping[str, Path], scratch: Path) -> None:
    """Copy the images to `scratch` first, so that data/raw is replaced only by a complete copy."""
    new, old = scratch / "new", scratch / "old"
    for name, path in tqdm(images.items(), desc="copying", unit="file"):
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, new / name)
    if paths.RAW.exists():
        paths.RAW.rename(old)
    new.rename(paths.RAW)


def main() -> None:
    runner.run(ingest)


if __name__ == "__main__":
    main()
