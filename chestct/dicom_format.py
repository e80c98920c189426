"""Parses a DICOM file (PS3.5 and PS3.10) into its elements by tag.

It limits the number of elements and checks each length. pydicom would need a second and a gigabyte for a body full of
empty elements, and reads a truncated file as an empty one.
"""

import struct
import zlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from chestct.invalid_image import MAX_PIXELS, InvalidImage, undecodable

MAX_ELEMENTS: Final = 20_000
"""Elements before the pixels, those in sequences included. A slice has some hundred, of some makers a few thousand."""
_MAX_DEPTH: Final = 16
_MAX_INFLATED: Final = 2 * MAX_PIXELS + (16 << 20)
"""Bytes of a deflated file: pixels of 16 bits and the elements before them."""

BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
DEFLATED: Final = "1.2.840.10008.1.2.1.99"
_IMPLICIT: Final = "1.2.840.10008.1.2"

_TRANSFER_SYNTAX: Final = 0x0002_0010
_PIXEL_DATA: Final = 0x7FE0_0010
_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xFFFE_E000, 0xFFFE_E00D, 0xFFFE_E0DD
_UNDEFINED: Final = 0xFFFF_FFFF
_LONG: Final = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""Value representations with a length of four bytes, after two reserved ones."""
_KINDS: Final = _LONG | {
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"),
    *(b"ST", b"TM", b"UI", b"UL", b"US"),
}


@dataclass(slots=True)
class DicomFile:
    """The wanted elements of a file, unconverted."""

    syntax: str | None = None
    """UID of the transfer syntax; None if the file names none."""
    little_endian: bool = True
    values: dict[int, bytes] = field(default_factory=dict)
    """Values by tag. An empty value is that of an empty element."""
    pixels: bytes | None = None
    """Uncompressed Pixel Data."""
    in_words: bool = False
    """Whether the pixels are words of two bytes. A big-endian file of one-byte pixels has them swapped then."""
    frame: bytes | None = None
    """Compressed Pixel Data: all fragments joined, without the offset table."""


def is_dicom(data: bytes) -> bool:
    """Whether the bytes start like a DICOM file, with or without a preamble. Its name doesn't matter."""
    if data[128:132] == b"DICM":
        return True
    if data[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        return False
    parser = _Parser(data, DicomFile(little_endian=data[0] != 0), explicit=data[4:6] in _KINDS)
    last, at = 0, 0
    try:
        for _ in range(3):
            tag, length, at = parser.read_header(at)
            if not last < tag < 0x0010_0000 or length > 1024:
                return False
            last, at = tag, at + length
    except InvalidImage:
        return False
    return True


def read_elements(data: bytes, wanted: Collection[int], containers: Collection[int]) -> DicomFile:
    """Read the wanted elements and the pixels. Elements after the pixels are ignored.

    Wanted elements may be at the top level and in sequences that are `containers`, also nested ones. The first one
    with a value counts. Raises InvalidImage: `undecodable_image` for a truncated file, no DICOM file, or too many
    elements, and `image_too_large` for a file that inflates to too many bytes.
    """
    file = DicomFile()
    parser = _Parser(data, file, explicit=True)
    at = 132 if data[128:132] == b"DICM" else 0
    while data[at : at + 2] == b"\x02\0":
        at = parser.read_element(at, {_TRANSFER_SYNTAX}, ())
    syntax = file.values.get(_TRANSFER_SYNTAX, b"").strip(b" \0").decode("ascii", "replace") or None
    if syntax == DEFLATED:
        data, at = _inflate(data[at:]), 0
    file.syntax = syntax
    file.little_endian = syntax != BIG_ENDIAN and not (syntax is None and data[at : at + 1] == b"\0")
    parser = _Parser(data, file, parser.count)
    parser.explicit = parser.is_explicit(at, syntax not in (None, _IMPLICIT))
    while at < len(data) and file.pixels is None and file.frame is None:
        at = parser.read_element(at, wanted, containers)
    return file


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


class _Parser:
    """Parses a data set into a file, element by element. `at` and `end` are positions in the data."""

    def __init__(self, data: bytes, file: DicomFile, count: int = 0, *, explicit: bool = True) -> None:
        self._data = data
        self._file = file
        self._two = struct.Struct("<HH" if file.little_endian else ">HH")
        self._four = struct.Struct("<I" if file.little_endian else ">I")
        self._end_of_item = self._two.pack(_END_OF_ITEM >> 16, _END_OF_ITEM & 0xFFFF)
        self.explicit = explicit
        """Whether elements name their value representation."""
        self.count = count
        """Elements so far."""

    def is_explicit(self, at: int, expected: bool) -> bool:
        """Whether the element there names its value representation, known or not."""
        kind = self._data[at + 4 : at + 6]
        return kind in _KINDS or (expected and _is_printable(kind))

    def read_header(self, at: int) -> tuple[int, int, int]:
        """Read the tag and the length of the element there, and the position of its value."""
        self.count += 1
        if self.count > MAX_ELEMENTS:
            raise undecodable(f"expected a DICOM file of at most {MAX_ELEMENTS} elements, got more")
        try:
            group, element = self._two.unpack_from(self._data, at)
            tag = group << 16 | element
            kind = self._data[at + 4 : at + 6]
            if group != 0xFFFE and self.explicit and _is_printable(kind):
                if kind in _LONG:
                    return tag, self._four.unpack_from(self._data, at + 8)[0], at + 12
                return tag, self._two.unpack_from(self._data, at + 4)[1], at + 8
            return tag, self._four.unpack_from(self._data, at + 4)[0], at + 8
        except struct.error:
            raise _cut_off() from None

    def read_element(self, at: int, wanted: Collection[int], containers: Collection[int], depth: int = 0) -> int:
        """Keep the element there if it is wanted. Returns the position after it."""
        tag, length, at = self.read_header(at)
        if tag == _PIXEL_DATA and not depth:
            return self._read_pixels(at, length)
        if tag in containers:
            return self._read_sequence(at, length, wanted, containers, depth + 1)
        if length == _UNDEFINED:
            return self._read_sequence(at, length, (), (), depth + 1)
        end = self._check_end(at + length)
        if tag in wanted and not self._file.values.get(tag):
            self._file.values[tag] = self._data[at:end]
        return end

    def _read_sequence(
        self, at: int, length: int, wanted: Collection[int], containers: Collection[int], depth: int
    ) -> int:
        if depth > _MAX_DEPTH:
            raise undecodable(f"expected a DICOM file of sequences nested at most {_MAX_DEPTH} deep, got deeper ones")
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
            self._file.pixels = self._data[at:end]
            self._file.in_words = self.explicit and self._data[at - 8 : at - 6] == b"OW"
            return end
        fragments = []
        while at + 8 <= len(self._data):  # the end of the sequence may be missing
            tag, length, at = self.read_header(at)
            if tag != _ITEM:
                break
            fragments.append(self._data[at : self._check_end(at + length)])
            at += length
        self._file.frame = b"".join(fragments[1:] or fragments)  # the first of several is the offset table
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
    return undecodable(f"the DICOM file is truncated or corrupt: {how}")
