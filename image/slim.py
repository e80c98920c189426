"""`python slim.py FOLDER`: removes what serves no request from a folder of installed packages.

image/Containerfile runs it, and benchmarks/footprint.py measures what it leaves. It needs `strip` of GNU binutils, and
no package of Python.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

BAD_INPUT: Final = 2
FORMATS: Final = ("gguf", "jax", "paddle", "pytorch", "tensorflow", "tensorflow_lite")
"""Formats of networks that OpenVINO reads. A model here is ONNX."""
UNNEEDED: Final = (
    # Tests, and what only type checkers and compilers read.
    "*/test/*",
    "*/tests/*",
    *(f"*.{suffix}" for suffix in ("a", "c", "cmake", "h", "hpp", "pc", "pxd", "pyi", "pyx")),
    # OpenVINO's plugins for GPUs and NPUs and those that choose a device, because the engine names the CPU. Then its
    # readers of other formats, its tools and its interface for C.
    "/openvino/libs/cache.json",
    "/openvino/libs/libopenvino_intel_[gn]pu_plugin.so",
    "/openvino/libs/libopenvino_auto*_plugin.so",
    "/openvino/libs/libopenvino_hetero_plugin.so",
    *(f"/openvino/*{name}[_/]*" for name in FORMATS),  # folders, and libraries that are called NAME_frontend
    "/openvino/tools/*",
    "/openvino/libs/libopenvino_c.so*",
    # A module for numpy's tests alone.
    "/numpy/_core/_simd.*",
    # Pillow's AVIF, WebP, colour profiles, fonts and Tk, and their libraries. Pillow works without them.
    *(f"/PIL/_{name}.*" for name in ("avif", "webp")),
    *(f"/PIL/_imaging{name}.*" for name in ("cms", "ft", "tk")),
    *(f"/pillow.libs/lib{name}-*" for name in ("avif", "brotlicommon", "brotlidec", "freetype", "harfbuzz", "lcms2")),
    *(f"/pillow.libs/lib{name}-*" for name in ("png16", "sharpyuv", "webp", "webpdemux", "webpmux")),
    # pydicom's samples and structured reports. GDCM's tables and its programs, which have no suffix.
    "/pydicom/data/test_files/*",
    "/pydicom/sr/*",
    "/_gdcm/XML/*",
    "/_gdcm/gdcm[!s]*",
    "/_gdcm/gdcmsc*",
)
"""Patterns of paths below the folder, each with a leading slash. `*` crosses slashes. A package may lack some of them,
because wheels of other architectures differ."""

_LOAD: Final = """
import contextlib, ctypes, sys
for path in sys.argv[1:]:
    with contextlib.suppress(OSError):
        ctypes.CDLL(path)
        print(path)
"""


class CannotSlim(Exception):
    """The folder can't be made smaller. The message is one line."""


def is_unneeded(path: str) -> bool:
    """Whether UNNEEDED names this path, which is relative to the folder."""
    return any(fnmatchcase(f"/{path}", pattern) for pattern in UNNEEDED)


def slim(folder: Path) -> None:
    """Remove what is unneeded, keep one copy of equal libraries, and strip them.

    Raises CannotSlim if a library that is left no longer loads, for want of another one or because strip broke it.
    """
    before = _loadable(folder)
    for path in list(_files(folder)):
        if is_unneeded(path.relative_to(folder).as_posix()):
            path.unlink()
    for path in sorted(folder.rglob("*"), reverse=True):  # a folder comes after what it holds
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
    _link_copies(folder)
    left = _libraries(folder)
    for library in left:
        if library.parent.suffix != ".libs":  # auditwheel has rewritten those, and strip would break them
            _strip(library)
    if broken := before.intersection(left) - _loadable(folder):
        names = sorted(path.relative_to(folder).as_posix() for path in broken)
        raise CannotSlim(f"these would no longer load: {', '.join(names)}")


def _libraries(folder: Path) -> list[Path]:
    """The native libraries and extension modules below a folder, without links to them."""
    return sorted(path for path in _files(folder) if path.suffix == ".so" or ".so." in path.name)


def _loadable(folder: Path) -> set[Path]:
    """The libraries below a folder that a process can load."""
    command = [sys.executable, "-c", _LOAD, *map(str, _libraries(folder))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {Path(line) for line in done.stdout.splitlines()}


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, without links."""
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _link_copies(folder: Path) -> None:
    """Replace each copy of a library by a link to the one with the shortest name. GDCM's wheel has three of each."""
    kept: dict[tuple[Path, str], Path] = {}
    for library in sorted(_libraries(folder), key=lambda path: len(path.name)):
        with library.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        first = kept.setdefault((library.parent, digest), library)
        if first != library:
            library.unlink()
            library.symlink_to(first.name)


def _strip(library: Path) -> None:
    """Take the debugging information and the local symbols out of a library, if that makes it smaller."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        stripped = Path(folder, library.name)
        try:
            subprocess.run(
                ["strip", "--strip-unneeded", "-o", stripped, library], check=True, capture_output=True, text=True
            )
        except FileNotFoundError:
            raise CannotSlim("strip is needed (Debian: apt-get install binutils)") from None
        except subprocess.CalledProcessError as error:
            raise CannotSlim(f"strip fails: {error.stderr.strip()}") from None
        if stripped.stat().st_size < library.stat().st_size:
            shutil.copymode(library, stripped)
            stripped.replace(library)


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print(f"slim: expected one folder: python {sys.argv[0]} FOLDER", file=sys.stderr)
        sys.exit(BAD_INPUT)
    try:
        slim(Path(sys.argv[1]))
    except CannotSlim as error:
        print(f"slim: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
