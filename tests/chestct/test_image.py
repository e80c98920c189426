import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from chestct import image
from chestct.card import InputSpec
from chestct.image import MAX_PIXELS, InvalidImage, decode, encode_png

SPEC = InputSpec(height=32, width=48)


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(width: int = 96, height: int = 64) -> Image.Image:
    return Image.fromarray(np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1)))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


def test_gives_grey_pixels_of_the_asked_size_and_the_size_before_resizing():
    picture = decode(encoded(ramp()), SPEC)
    assert picture.pixels.shape == (32, 48, 1)
    assert picture.pixels.dtype == np.uint8
    assert (picture.facts.width, picture.facts.height) == (96, 64)
    assert np.all(np.diff(picture.pixels[5, :, 0].astype(int)) > 0)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_the_same_grey_levels_in_any_mode_give_the_same_pixels(mode):
    expected = decode(encoded(ramp()), SPEC).pixels.astype(int)
    pixels = decode(encoded(ramp().convert(mode)), SPEC).pixels
    assert np.abs(pixels - expected).max() <= 1


def test_sixteen_bit_levels_keep_their_high_byte():
    wide = Image.fromarray(np.asarray(ramp()).astype(np.uint16) * 257)
    assert np.array_equal(decode(encoded(wide), SPEC).pixels, decode(encoded(ramp()), SPEC).pixels)


def test_jpeg_is_read_whatever_its_size():
    small, large = (decode(encoded(ramp(*size), "JPEG", quality=95), SPEC).pixels for size in ((96, 64), (960, 640)))
    assert np.abs(small.astype(int) - large).max() <= 4


def test_a_jpeg_of_endless_scans_is_refused_and_a_progressive_one_read():
    progressive = encoded(ramp(512, 512), "JPEG", progressive=True, quality=95)
    assert 2 < progressive.count(b"\xff\xda") < 20
    assert decode(progressive, SPEC).pixels.shape == (SPEC.height, SPEC.width, 1)
    last = progressive.rindex(b"\xff\xda")
    bomb = progressive[:last] + progressive[last:-2] * 100 + progressive[-2:]
    with pytest.raises(InvalidImage, match="at most 64 scans") as refused:
        decode(bomb, SPEC)
    assert refused.value.code == "undecodable_image"


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = decode(encoded(ramp().rotate(180), "JPEG", exif=exif, quality=95), SPEC).pixels
    upright = decode(encoded(ramp(), "JPEG", quality=95), SPEC).pixels
    assert np.abs(turned.astype(int) - upright).max() <= 4


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_image"),
        (b"hello", "undecodable_image"),
        (encoded(ramp(), "GIF"), "undecodable_image"),
        (encoded(ramp())[:-40], "undecodable_image"),
        (encoded(ramp(), "JPEG")[:-200], "undecodable_image"),
        (png_header(64, 64) + chunk(b"IDAT", b"no deflate stream") + chunk(b"IEND", b""), "undecodable_image"),
        (png_header(0, 64), "undecodable_image"),
        (png_header(10_000, 10_000) + chunk(b"IDAT", zlib.compress(b"\0")), "image_too_large"),
        (png_header(100_000, 100_000) + chunk(b"IDAT", zlib.compress(b"\0")), "image_too_large"),
    ],
)
def test_what_is_no_whole_picture_is_refused_with_a_code(data, code):
    with pytest.raises(InvalidImage) as caught:
        decode(data, SPEC)
    assert caught.value.code == code
    assert str(caught.value)


def test_the_largest_picture_allowed_is_read():
    side = int(MAX_PIXELS**0.5)
    assert decode(encoded(Image.new("L", (side, side), 7), compress_level=1), SPEC).pixels.max() == 7


def test_a_preview_reads_back_as_the_same_pixels():
    grey = np.asarray(ramp())
    assert np.array_equal(np.asarray(Image.open(BytesIO(encode_png(grey)))), grey)


NOISE = Image.fromarray(np.random.default_rng(7).integers(0, 256, (61, 83, 4), dtype=np.uint8))
TURNED = Image.Exif()
TURNED[0x0112] = 3  # upside down


def outcome(data: bytes) -> tuple[object, ...]:
    try:
        picture = decode(data, SPEC)
    except InvalidImage as error:
        return error.code, error.message
    return picture.pixels.tobytes(), *picture.facts[:5], picture.facts.layout.tobytes()


@pytest.fixture
def by_pillow(monkeypatch: pytest.MonkeyPatch):
    """The outcome where Pillow alone decodes."""

    def outcome_by_pillow(data: bytes) -> tuple[object, ...]:
        with monkeypatch.context() as patched:
            patched.setattr(image, "_is_plain", lambda _: False)
            return outcome(data)

    return outcome_by_pillow


@pytest.mark.parametrize(
    ("data", "plain"),
    [
        (encoded(NOISE), True),
        (encoded(NOISE.convert("RGB")), True),
        (encoded(NOISE.convert("L")), True),
        (encoded(NOISE.convert("RGB"), dpi=(72, 72), icc_profile=b"profile"), True),
        (encoded(NOISE.convert("LA")), False),
        (encoded(NOISE.convert("P")), False),
        (encoded(NOISE.convert("1")), False),
        (encoded(NOISE.convert("L").convert("I;16")), False),
        (encoded(NOISE.convert("RGB"), transparency=(1, 2, 3)), False),
        (encoded(NOISE.convert("RGB"), exif=TURNED), False),
        (encoded(NOISE.convert("RGB"), "JPEG"), False),
    ],
)
def test_a_plain_png_is_decoded_faster_and_to_the_same_pixels(data, plain, by_pillow, monkeypatch):
    taken = []
    fast = image.decode_image_png_u8
    monkeypatch.setattr(image, "decode_image_png_u8", lambda *args: taken.append(args) or fast(*args))
    assert outcome(data) == by_pillow(data)
    assert len(taken) == plain


def test_exif_behind_the_pixels_of_a_png_turns_it(by_pillow):
    whole = encoded(NOISE.convert("RGB"))
    turned = whole[:-12] + chunk(b"eXIf", TURNED.tobytes().removeprefix(b"Exif\0\0")) + whole[-12:]
    assert outcome(turned) == by_pillow(turned) == outcome(encoded(NOISE.convert("RGB").rotate(180)))


def test_a_broken_png_has_pillows_outcome(by_pillow):
    rng = np.random.default_rng(7)
    whole = np.frombuffer(encoded(NOISE), np.uint8)
    for _ in range(300):
        broken = whole.copy()
        for place in rng.integers(0, len(whole) if rng.random() < 0.5 else 100, rng.integers(1, 4)):
            broken[place] = rng.integers(256)
        data = broken[: rng.integers(30, len(whole)) if rng.random() < 0.3 else len(whole)].tobytes()
        assert outcome(data) == by_pillow(data)
