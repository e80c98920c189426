"""What the image leaves out of the installed packages, and that all that is left still loads."""

import platform
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path

import pytest

from image import slim
from tests.server import ROOT

needs_strip = pytest.mark.skipif(
    shutil.which("strip") is None, reason="no strip here (Debian: apt-get install binutils)"
)
PINNED = re.findall(r"^([\w.-]+)==", (ROOT / "requirements/serving.txt").read_text(encoding="utf-8"), re.MULTILINE)


def copy(distribution: str, folder: Path) -> None:
    for file in metadata.files(distribution) or []:
        if file.suffix != ".pyc" and ".." not in file.parts:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), folder / file)


@pytest.mark.parametrize(
    ("path", "unneeded"),
    [
        ("numpy/linalg/tests/test_linalg.py", True),
        ("numpy/testing/__init__.py", False),
        ("numpy/__init__.pyi", True),
        ("numpy/_core/include/numpy/arrayobject.h", True),
        ("openvino/libs/libopenvino_intel_gpu_plugin.so", True),
        ("openvino/libs/libopenvino_intel_cpu_plugin.so", False),
        ("openvino/libs/libopenvino_tensorflow_frontend.so.2641", True),
        ("openvino/libs/libopenvino_onnx_frontend.so.2641", False),
        ("openvino/frontend/pytorch/__init__.py", True),
        ("openvino/frontend/onnx/__init__.py", False),
        ("openvino/torch/__init__.py", False),
        ("openvino/libs/libopenvino_ir_frontend.so.2641", False),
        ("openvino/libs/libopenvino_c.so.2641", True),
        ("PIL/_imagingft.cpython-311-x86_64-linux-gnu.so", True),
        ("PIL/_imaging.cpython-311-x86_64-linux-gnu.so", False),
        ("pillow.libs/libwebp-51b0b3f7.so.7.2.0", True),
        ("pillow.libs/libjpeg-31e2ca52.so.62.4.0", False),
        ("_gdcm/gdcmscanner", True),
        ("_gdcm/gdcmimg", True),
        ("_gdcm/gdcmswig.py", False),
        ("pydicom/data/charset_files/README.txt", False),
    ],
)
def test_a_path_is_left_out_or_kept(path: str, unneeded: bool) -> None:
    assert slim.is_unneeded(path) is unneeded


@pytest.mark.skipif(platform.machine() != "x86_64", reason="wheels of other architectures lack some of these files")
def test_every_pattern_names_a_file_of_a_pinned_package() -> None:
    files = [f"/{file}" for name in PINNED if _installed(name) for file in metadata.files(name) or []]
    assert [pattern for pattern in slim.UNNEEDED if not any(fnmatchcase(file, pattern) for file in files)] == []


def _installed(name: str) -> bool:
    return next(iter(metadata.distributions(name=name)), None) is not None


@needs_strip
def test_pillow_is_half_as_large_and_still_reads_jpeg_and_png(tmp_path: Path) -> None:
    copy("pillow", tmp_path)
    before = size(tmp_path)
    slim.slim(tmp_path)
    assert size(tmp_path) < 0.5 * before
    assert not (tmp_path / "PIL" / "_webp.pyi").exists()
    read = """
import io
from PIL import Image, features
assert features.check("jpg") and not features.check("freetype2") and not features.check("webp")
for format in ("JPEG", "PNG"):
    file = io.BytesIO()
    Image.new("L", (8, 8), 99).save(file, format)
    assert Image.open(file).getpixel((4, 4)) == 99
print(Image.__file__)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", read],
        env={"PYTHONPATH": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@needs_strip
def test_of_equal_libraries_of_a_folder_one_is_kept(tmp_path: Path) -> None:
    (library,) = (file for file in metadata.files("psutil") or [] if file.suffix == ".so")
    for name in ("a/lib.so.1.2", "a/lib.so", "a/lib.so.1", "b/lib.so"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(library.locate(), tmp_path / name)
    (tmp_path / "a/tests").mkdir()
    (tmp_path / "a/tests/test_a.py").touch()
    slim.slim(tmp_path)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"lib.so", "lib.so.1", "lib.so.1.2"}
    assert (tmp_path / "a/lib.so.1").readlink() == (tmp_path / "a/lib.so.1.2").readlink() == Path("lib.so")
    assert not (tmp_path / "a/lib.so").is_symlink()
    assert not (tmp_path / "b/lib.so").is_symlink()
    assert (tmp_path / "a/lib.so").stat().st_mode & 0o777 == Path(library.locate()).stat().st_mode & 0o777


@needs_strip
def test_a_library_that_would_no_longer_load_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy("pillow", tmp_path)
    monkeypatch.setattr(slim, "UNNEEDED", ("/pillow.libs/libjpeg-*",))
    with pytest.raises(slim.CannotSlim, match=r"no longer load: PIL/_imaging\..*so, pillow\.libs/libtiff"):
        slim.slim(tmp_path)


@pytest.mark.parametrize("arguments", [[], ["absent"]])
def test_the_command_wants_a_folder(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "image/slim.py", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == slim.BAD_INPUT
    assert "expected one folder" in done.stderr


def test_without_strip_the_command_says_what_to_install(tmp_path: Path) -> None:
    (library,) = (file for file in metadata.files("psutil") or [] if file.suffix == ".so")
    shutil.copy(library.locate(), tmp_path / "lib.so")
    done = subprocess.run(
        [sys.executable, ROOT / "image/slim.py", tmp_path],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "slim: strip is needed (Debian: apt-get install binutils)\n")
