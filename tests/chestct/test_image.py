"""PNG and JPEG become standard pictures and facts, and what is too large, costly or broken is refused."""

import zlib
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from chestct import image
from chestct.image import decode, encode_png, inspect
from chestct.invalid_image import MAX_PIXELS, MAX_SIDE, InvalidImage
from tests.pictures import (
    SPEC,
    chunk,
    encoded,
    grey_levels,
    png,
    png_header,
    ramp,
    refusal,
    repeat_last_scan,
    segment,
    with_chunks,
    with_segments,
)


def test_gives_grey_pixels_of_the_asked_size_and_the_size_before_resizing():
    picture = decode(encoded(ramp()), SPEC)
    assert picture.pixels.shape == (32, 48, 1)
    assert picture.pixels.dtype == np.uint8
    assert (picture.facts.width, picture.facts.height) == (96, 64)
    assert np.all(np.diff(grey_levels(encoded(ramp()))) > 0)


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
    code, message = refusal(repeat_last_scan(progressive, 100))
    assert code == "undecodable_image"
    assert "at most 64 scans" in message


def test_the_larger_a_jpeg_the_fewer_scans_it_may_have():
    usual = encoded(Image.new("CMYK", (64, 64)), "JPEG", progressive=True)
    assert inspect(usual).samples * MAX_PIXELS / 64**2 <= image.jpeg.MAX_SAMPLES
    large = encoded(Image.new("L", (4096, 4096)), "JPEG", progressive=True)
    assert decode(repeat_last_scan(large, 18), SPEC)
    code, message = refusal(repeat_last_scan(large, 20))
    assert code == "undecodable_image"
    assert "fewer if it is large" in message


def test_an_index_of_pictures_hides_no_scan():
    plain = encoded(ramp(512, 512), "JPEG", progressive=True)
    index = segment(0xE2, b"MPF\0II*\0" + bytes(80))
    assert refusal(with_segments(repeat_last_scan(plain, 100), index) + plain) == refusal(repeat_last_scan(plain, 100))


@pytest.mark.parametrize(
    "data",
    [
        with_chunks(encoded(ramp()), chunk(b"tEXt", b"") * 20_000),
        encoded(ramp())[:33] + chunk(b"IDAT", b"") * 20_000 + encoded(ramp())[33:],
        with_segments(encoded(ramp(), "JPEG"), segment(0xFE, b"") * 2_000),
        with_segments(encoded(ramp(), "JPEG"), segment(0xDD, b"\0\0") * 2_000),
    ],
)
def test_a_file_of_endless_parts_is_refused(data):
    code, message = refusal(data)
    assert code == "undecodable_image"
    assert "too many parts" in message


def test_a_segment_ends_a_scan_as_it_does_in_libjpeg():
    whole = encoded(NOISE.convert("L"), "JPEG")
    middle = len(whole) * 3 // 4
    first = whole[:middle].rstrip(b"\xff")
    cut = Image.open(BytesIO(first + b"\xff\xd9"))
    assert np.array_equal(grey_levels(first + segment(0xE5, b"") + whole[middle:]), np.asarray(cut))


@pytest.mark.parametrize("between", [b"\xff" * 100_000, b"junk" * 25_000, b"\xff\0" * 50_000])
def test_bytes_between_two_segments_are_skipped(between):
    whole = encoded(ramp(), "JPEG")
    assert outcome(with_segments(whole, between)) == outcome(whole)


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
        (png_header(1, MAX_SIDE + 1), "image_too_large"),
        (png_header(1, MAX_PIXELS), "image_too_large"),
        (b"\xff\xd8" + segment(0xC2, b"\x08\x20\x01\x00\x08\x01\x01\x11\x00"), "image_too_large"),
    ],
)
def test_an_incomplete_or_unsupported_picture_is_refused_with_a_code(data, code):
    with pytest.raises(InvalidImage) as caught:
        decode(data, SPEC)
    assert caught.value.code == code
    assert str(caught.value)


def test_the_largest_picture_allowed_is_read():
    side = int(MAX_PIXELS**0.5)
    for size in ((side, side), (1, MAX_SIDE), (MAX_SIDE, 1)):
        facts = decode(encoded(Image.new("L", size, 7), compress_level=1), SPEC).facts
        assert (facts.width, facts.height, facts.contrast) == (*size, 0)


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
    """The outcome if Pillow alone decodes."""

    def outcome_by_pillow(data: bytes) -> tuple[object, ...]:
        with monkeypatch.context() as patched:
            patched.setattr(image, "_load_plain_png", lambda *_: None)
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
        (encoded(NOISE.convert("RGB"), transparency=(1, 2, 3)), True),
        (encoded(NOISE.convert("RGB"), exif=TURNED), True),
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


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "PNG", {}),
        ("P", "PNG", {"exif": TURNED, "dpi": (72, 72)}),
        ("I;16", "PNG", {}),
        ("RGB", "JPEG", {}),
        ("L", "JPEG", {"progressive": True, "exif": TURNED, "comment": "\xff\xd9"}),
        ("CMYK", "JPEG", {"restart_marker_blocks": 1}),
    ],
)
def test_a_truncated_picture_has_one_code_wherever_it_is_cut(mode, kind, options):
    small = NOISE.convert("L").resize((16, 12))
    whole = encoded(small.convert(mode), kind, **options)
    assert decode(whole, SPEC)
    assert {refusal(whole[:length])[0] for length in range(1, len(whole))} == {"undecodable_image"}
    assert {"truncated" in refusal(whole[:length])[1] for length in range(60, len(whole))} == {True}


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"IEND"])
def test_a_wrong_checksum_of_what_is_decoded_is_refused(kind):
    whole = encoded(ramp())
    at = whole.index(kind) - 4
    wrong = at + 8 + int.from_bytes(whole[at : at + 4], "big")
    code, message = refusal(whole[:wrong] + bytes([whole[wrong] ^ 1]) + whole[wrong + 1 :])
    assert code == "undecodable_image"
    assert "corrupt" in message


@pytest.mark.parametrize(
    ("data", "cheap"),
    [
        (encoded(ramp(512, 512)), True),
        (encoded(ramp(512, 512), "JPEG", progressive=True), True),
        (encoded(ramp(2048, 2048)), True),
        (encoded(ramp(2049, 2048)), False),
        (encoded(ramp(1024, 1024).convert("RGB"), "JPEG", progressive=True), True),
        (repeat_last_scan(encoded(ramp(1024, 1024), "JPEG", progressive=True), 40), False),
        (png(png_header(64, 64), bytes(2_000_000)), False),
    ],
)
def test_whether_decoding_is_cheap_is_known_before(data, cheap):
    assert inspect(data).cheap == cheap


def test_a_broken_png_has_pillows_outcome(by_pillow):
    rng = np.random.default_rng(7)
    whole = np.frombuffer(encoded(NOISE), np.uint8)
    for _ in range(300):
        broken = whole.copy()
        for place in rng.integers(0, len(whole) if rng.random() < 0.5 else 100, rng.integers(1, 4)):
            broken[place] = rng.integers(256)
        data = broken[: rng.integers(30, len(whole)) if rng.random() < 0.3 else len(whole)].tobytes()
        assert outcome(data) == by_pillow(data)


def coarse_slice(level: int) -> Image.Image:
    """A body with two lungs on air, and `level` grey levels to spare at either end."""
    levels = np.full((90, 120), level, np.uint8)
    levels[10:80, 10:110] = 255 - level
    levels[25:65, 20:50] = levels[25:65, 70:100] = level
    return Image.fromarray(levels)


def test_the_negative_of_a_picture_with_light_corners_is_measured() -> None:
    upright = decode(encoded(coarse_slice(20)), SPEC).facts
    negative = decode(encoded(coarse_slice(235)), SPEC).facts
    assert not upright.negative.any(), "its corners are dark, so it is not inverted"
    assert np.array_equal(negative.negative, upright.layout)
    assert (upright.negative_bodies, negative.negative_bodies) == (0, 1)
    assert not np.array_equal(negative.layout, upright.layout)


def blockiness(levels: NDArray[np.uint8]) -> float:
    return decode(encoded(Image.fromarray(levels)), SPEC).facts.blockiness


def test_blockiness_is_the_step_at_every_eighth_column_by_that_elsewhere() -> None:
    steps = np.full(160, 2)
    steps[8::8] = 5  # between columns 7 and 8, 15 and 16, ...
    levels = np.cumsum(steps * np.where(np.arange(160) % 16 < 8, 1, -1)) + 60
    assert blockiness(np.tile(levels.astype(np.uint8), (96, 1))) == pytest.approx(2.5)
    assert blockiness(np.full((96, 96), 7, np.uint8)) == 1
    assert blockiness(np.arange(8, dtype=np.uint8).reshape(1, 8).repeat(9, axis=0)) == 1


def test_jpeg_makes_a_noisy_picture_blocky() -> None:
    noisy = (np.linspace(40, 200, 160) + np.random.default_rng(0).normal(0, 6, (96, 160))).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=50)
    assert blockiness(noisy) == pytest.approx(1, abs=0.1)
    assert decode(buffer.getvalue(), SPEC).facts.blockiness > 1.2
