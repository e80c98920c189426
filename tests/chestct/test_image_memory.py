"""Memory to decode the worst picture of each kind, measured in separate processes."""

import json
import subprocess
import sys
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from PIL import Image

from chestct.encoded_image import CHEAP_MEMORY, CHEAP_PIXELS, MAX_MEMORY
from chestct.image import inspect
from chestct.invalid_image import MAX_PIXELS, MAX_SIDE
from tests.pictures import chunk, encoded, exif, orientation, png, png_header, with_chunks
from tests.server import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts a process' memory as Linux does")

SIDE = round(MAX_PIXELS**0.5)
CHEAP_SIDE = round(CHEAP_PIXELS**0.5)
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
"""Start and step of each pass."""

MEASURE = """
import json, os, sys
from pathlib import Path
from chestct.card import InputSpec
from chestct.image import decode

SPEC = InputSpec(height=256, width=256)

def peak(work):
    if not (child := os.fork()):
        work()
        os._exit(0)
    _, status, usage = os.wait4(child, 0)
    assert status == 0, status
    return usage.ru_maxrss * 1024

files = {path.name: path.read_bytes() for path in sorted(Path(sys.argv[1]).iterdir())}
for name in ("small.png", "small.jpg"):
    decode(files.pop(name), SPEC)
nothing = peak(lambda: None)
print(json.dumps({name: peak(lambda: decode(data, SPEC)) - nothing for name, data in files.items()}))
"""


def black_png(width: int, height: int, bits: int, colours: int, interlaced: int) -> bytes:
    pixel = bits * CHANNELS[colours]

    def size(columns: int, rows: int) -> int:
        return rows * (1 + -(-columns * pixel // 8))

    length = size(width, height)
    if interlaced:
        length = sum(size(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in ADAM7)
    palette = chunk(b"PLTE", bytes(768)) if colours == 3 else b""
    return png(png_header(width, height, bits, colours, interlaced) + palette, zlib.compress(bytes(length), 1))


def grey_jpeg(width: int, height: int, mode: str, *, progressive: bool) -> bytes:
    """A truncated picture that libjpeg accepts: it fills up the rest of each scan."""
    small = encoded(Image.new(mode, (64, 64), 120), "JPEG", subsampling=0, progressive=progressive)
    at = small.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    return small[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + small[at + 4 :]


TURNED = chunk(b"eXIf", exif(orientation(6)))


def worst() -> Iterator[tuple[str, bytes]]:
    for side in (CHEAP_SIDE, SIDE):
        for bits, colours, interlaced in (
            *((8, 0, 0), (16, 0, 0), (16, 0, 1), (8, 2, 0), (8, 2, 1), (8, 3, 0)),
            *((8, 4, 0), (8, 6, 0), (16, 6, 0), (16, 6, 1)),
        ):
            name = f"{side}-{bits}-bit-{colours}{'-interlaced' * interlaced}.png"
            yield name, black_png(side, side, bits, colours, interlaced)
        for mode in ("L", "RGB", "CMYK"):
            for progressive in (False, True):
                name = f"{side}-{mode}{'-progressive' * progressive}.jpg"
                yield name, grey_jpeg(side, side, mode, progressive=progressive)
        yield f"{side}-turned.png", with_chunks(black_png(side, side, 8, 6, 0), TURNED)
    yield "wide.png", black_png(MAX_SIDE, MAX_PIXELS // MAX_SIDE, 8, 2, 0)
    yield "narrow.jpg", grey_jpeg(511, MAX_SIDE, "CMYK", progressive=True)  # too narrow to be scaled down


class Growth(NamedTuple):
    size: int
    """Bytes by which a process grew."""
    cheap: bool


@pytest.fixture(scope="module")
def growth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Growth]:
    """Growth of a process that decodes only this file."""
    folder = tmp_path_factory.mktemp("worst")
    cheap = {}
    for name, data in worst():
        (folder / name).write_bytes(data)
        cheap[name] = inspect(data).cheap
    (folder / "small.png").write_bytes(black_png(8, 8, 8, 0, 0))
    (folder / "small.jpg").write_bytes(grey_jpeg(8, 8, "L", progressive=False))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    sizes: dict[str, int] = json.loads(done.stdout)
    return {name: Growth(size, cheap[name]) for name, size in sizes.items()}


def test_the_worst_picture_of_each_kind_stays_within_max_memory(growth: dict[str, Growth]) -> None:
    sizes = {name: size for name, (size, _) in growth.items()}
    assert {name: size for name, size in sizes.items() if size > MAX_MEMORY} == {}
    assert max(sizes.values()) > MAX_MEMORY // 2  # otherwise the limit is far from the measured size


def test_cheap_pictures_stay_within_cheap_memory(growth: dict[str, Growth]) -> None:
    cheap = {name: size for name, (size, cheap) in growth.items() if cheap}
    assert len(cheap) > 12
    assert {name: size for name, size in cheap.items() if size > CHEAP_MEMORY} == {}
    assert max(cheap.values()) > CHEAP_MEMORY // 2
