"""The form of a DICOM file (PS3.5 and PS3.10): its elements by their tags, whatever they mean.

Each element is counted, and each length held to the bytes that are there. pydicom takes a second and a gigabyte for
so many empty elements as fit into a body, and gives a file that was cut off as an empty one.
"""

import struct
import zlib
from collections.abc import Collection
from typing import Final, NamedTuple

from chestct.image import MAX_PIXELS, InvalidImage

MAX_ELEMENTS: Final = 20_000
"""Of a file before its pixels, in sequences too. A slice has some hundred, of some makers a few thousand."""
_MAX_DEPTH: Final = 16
_MAX_INFLATED: Final = 2 * MAX_PIXELS + (16 << 20)
"""Bytes of a deflated file: pixels of 16 bits, and what stands before them."""

BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
_IMPLICIT: Final = "1.2.840.10008.1.2"

_TRANSFER_SYNTAX: Final = 0x0002_0010
_PIXEL_DATA: Final = 0x7FE0_0010
_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD
_UNDEFINED: Final = 0xFFFF_FFFF
_LONG: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""Kinds of value whose length has four bytes after two that are reserved."""
_KINDS: Final = _LONG | {
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"),
    *(b"ST", b"TM", b"UI", b"UL", b"US"),
}


class DicomFile(NamedTuple):
    """What a file says, as it says it."""

    syntax: str | None
    """UID of its transfer syntax; None where it names none."""
    little_endian: bool
    values: dict[int, bytes]
    """The wanted elements' by their tags; empty is an element without a value."""
    pixels: bytes | None
    """Pixel Data, uncompressed."""
    in_words: bool
    """Of two bytes, if big-endian swapped where a pixel has one."""
    frame: bytes | None
    """Pixel Data, compressed, all fragments as one, without their table of offsets."""


def is_dicom(data: bytes) -> bool:
    """Whether these bytes begin as a DICOM file does, with its preamble or without. No name or type counts."""
    if data[128:132] == b"DICM":
        return True
    if data[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        return False
    walk = _Walk(data, little_endian=data[0] != 0, explicit=data[4:6] in _KINDS)
    last, at = 0, 0
    try:
        for _ in range(3):
            tag, length, at = walk.read_header(at)
            if not last < tag < 0x0010_0000 or length > 1024:
                return False
            last, at = tag, at + length
    except InvalidImage:
        return False
    return True


def read_elements(data: bytes, wanted: Collection[int], containers: Collection[int]) -> DicomFile:
    """The elements before the pixels whose tags are wanted, and the pixels; what follows these is not looked at.

    Wanted elements are looked for on the top and in those sequences that are `containers`, within each other too; the
    first one with a value counts. Raises InvalidImage: `undecodable_image` for a file that was cut off, is none, or
    has too many elements, `image_too_large` for one that inflates to too many bytes.
    """
    meta = _Walk(data, little_endian=True, explicit=True)
    at = 132 if data[128:132] == b"DICM" else 0
    while data[at : at + 2] == b"\x02\0":
        at = meta.read_element(at, {_TRANSFER_SYNTAX}, ())
    syntax = meta.values.get(_TRANSFER_SYNTAX, b"").strip(b" \0").decode("ascii", "replace") or None
    if syntax == DEFLATED:
        data, at = _inflate(data[at:]), 0
    big = syntax == BIG_ENDIAN or (syntax is None and data[at : at + 1] == b"\0")
    walk = _Walk(data, little_endian=not big, explicit=True)
    walk.explicit = walk.is_explicit(at, syntax not in (None, _IMPLICIT))
    walk.count = meta.count
    while at < len(data) and not walk.has_pixels:
        at = walk.read_element(at, wanted, containers)
    return DicomFile(syntax, not big, walk.values, walk.pixels, walk.in_words, walk.frame)


def _inflate(data: bytes) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = stream.decompress(data, _MAX_INFLATED + 1)
    except zlib.error:
        raise _broken("its deflated part is corrupt") from None
    if len(inflated) > _MAX_INFLATED:
        raise InvalidImage("image_too_large", f"expected a DICOM file of at most {_MAX_INFLATED} bytes, inflated")
    if not stream.eof:
        raise _cut_off()
    return inflated


class _Walk:
    """Through a data set in one byte order, element by element; `at` and `end` are positions in the data."""

    def __init__(self, data: bytes, *, little_endian: bool, explicit: bool) -> None:
        self._data = data
        self._two = struct.Struct("<HH" if little_endian else ">HH")
        self._four = struct.Struct("<I" if little_endian else ">I")
        self._end_of_item = self._two.pack(_END_OF_ITEM >> 16, _END_OF_ITEM & 0xFFFF)
        self.explicit = explicit
        """Elements say what kind of value they have."""
        self.count = 0
        self.values: dict[int, bytes] = {}
        self.pixels: bytes | None = None
        self.in_words = False
        self.frame: bytes | None = None

    @property
    def has_pixels(self) -> bool:
        return self.pixels is not None or self.frame is not None

    def is_explicit(self, at: int, expected: bool) -> bool:
        """Whether the element there says its kind, known or not."""
        kind = self._data[at + 4 : at + 6]
        return kind in _KINDS or (expected and _is_printable(kind))

    def read_header(self, at: int) -> tuple[int, int, int]:
        """Tag and length of the element there, and where its value begins."""
        self.count += 1
        if self.count > MAX_ELEMENTS:
            raise InvalidImage(
                "undecodable_image", f"expected a DICOM file of at most {MAX_ELEMENTS} elements, got more"
            )
        try:
            group, element = self._two.unpack_from(self._data, at)
            tag = group << 16 | element
            kind = self._data[at + 4 : at + 6]
            if tag >> 16 != 0xFFFE and self.explicit and _is_printable(kind):
                if kind in _LONG:
                    return tag, self._four.unpack_from(self._data, at + 8)[0], at + 12
                return tag, self._two.unpack_from(self._data, at + 4)[1], at + 8
            return tag, self._four.unpack_from(self._data, at + 4)[0], at + 8
        except struct.error:
            raise _cut_off() from None

    def read_element(self, at: int, wanted: Collection[int], containers: Collection[int], depth: int = 0) -> int:
        """Keep the element there, if it is wanted, and give the position after it."""
        tag, length, at = self.read_header(at)
        if tag == _PIXEL_DATA and not depth:
            return self._read_pixels(at, length)
        if tag in containers:
            return self._read_sequence(at, length, wanted, containers, depth + 1)
        if length == _UNDEFINED:
            return self._read_sequence(at, length, (), (), depth + 1)
        end = self._check_end(at + length)
        if tag in wanted and not self.values.get(tag):
            self.values[tag] = self._data[at:end]
        return end

    def _read_sequence(
        self, at: int, length: int, wanted: Collection[int], containers: Collection[int], depth: int
    ) -> int:
        if depth > _MAX_DEPTH:
            raise InvalidImage(
                "undecodable_image",
                f"expected a DICOM file of sequences nested at most {_MAX_DEPTH} deep, got deeper ones",
            )
        end = None if length == _UNDEFINED else self._check_end(at + length)
        while end is None or at < end:
            tag, length, at = self.read_header(at)
            if tag == _END_OF_SEQUENCE:
                return at
            if tag != _ITEM:
                raise _broken("a sequence holds something else than items")
            at = self._read_item(at, length, wanted, containers, depth)
        return at

    def _read_item(self, at: int, length: int, wanted: Collection[int], containers: Collection[int], depth: int) -> int:
        if length != _UNDEFINED and not containers:
            return self._check_end(at + length)
        end = None if length == _UNDEFINED else self._check_end(at + length)
        outside, self.explicit = self.explicit, self.is_explicit(at, self.explicit)
        while end is None or at < end:
            if self._data[at : at + 4] == self._end_of_item:
                at += 8
                break
            at = self.read_element(at, wanted, containers, depth)
        self.explicit = outside
        return at

    def _read_pixels(self, at: int, length: int) -> int:
        if length != _UNDEFINED:
            end = self._check_end(at + length)
            self.pixels = self._data[at:end]
            self.in_words = self.explicit and self._data[at - 8 : at - 6] == b"OW"
            return end
        fragments = []
        while at + 8 <= len(self._data):  # the end of the sequence may be missing
            tag, length, at = self.read_header(at)
            if tag != _ITEM:
                break
            fragments.append(self._data[at : self._check_end(at + length)])
            at += length
        self.frame = b"".join(fragments[1:] or fragments)  # the first is a table of offsets, unless it is the only one
        return at

    def _check_end(self, at: int) -> int:
        if at > len(self._data):
            raise _cut_off()
        return at


def _is_printable(kind: bytes) -> bool:
    return len(kind) == 2 and all(0x20 <= byte < 0x7F for byte in kind)


def _cut_off() -> InvalidImage:
    return _broken("it ends within an element")


def _broken(how: str) -> InvalidImage:
    return InvalidImage("undecodable_image", f"the DICOM file is truncated or corrupt: {how}")
