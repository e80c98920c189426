"""Bounds on a message in protobuf's wire format, unparsed: an empty field is two bytes here and 90 as an object."""

from collections.abc import Mapping
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

TEXT_BYTES: Final = 64 * 1024
"""Of names, parameters and unknown fields together. Pictures and pixels are not text."""

Layout = Mapping[int, "Layout | None"]
"""A message by the number of its fields: the layout of those that are messages, None for those that hold pictures."""

_PICTURES: Final = frozenset({"bytes_contents", "uint_contents", "raw_input_contents"})
_NO_FIELDS: Final[Layout] = {}


class NotProtobuf(ValueError):
    """The bytes are not in protobuf's wire format."""


class TooManyFields(ValueError):
    """Parsed, the message would take far more memory than its bytes; the error's words say what is allowed."""


def read_layout(descriptor: Descriptor | None) -> Layout:
    """The layout of the messages that this descriptor describes; None describes no fields."""
    if descriptor is None:
        return {}
    return {
        field.number: None if field.name in _PICTURES else read_layout(field.message_type)
        for field in descriptor.fields
        if field.name in _PICTURES or field.type == FieldDescriptor.TYPE_MESSAGE
    }


def check_size(message: bytes, layout: Layout, most_fields: int) -> None:
    """Check that a message has at most `most_fields` fields, on all levels together, and TEXT_BYTES beside pictures.

    Raises NotProtobuf and TooManyFields.
    """
    at, end = 0, len(message)
    fields, text = most_fields, TEXT_BYTES
    outer: list[tuple[Layout, int]] = []
    while True:
        while at == end:
            if not outer:
                return
            layout, end = outer.pop()
        fields -= 1
        if fields < 0:
            raise TooManyFields(f"at most {most_fields} fields, on all levels together, got more")
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == 2:
            size, at = _read_varint(message, at)
            inner = layout.get(tag >> 3, _NO_FIELDS)
            if inner:
                if at + size > end:
                    raise NotProtobuf
                outer.append((layout, end))
                layout, end = inner, at + size
                continue
            if inner is not None:
                text -= size
                if text < 0:
                    raise TooManyFields(f"at most {TEXT_BYTES} bytes beside pictures and pixels, got more")
            at += size
        elif kind == 0:
            _, at = _read_varint(message, at)
        elif kind == 5:
            at += 4
        elif kind == 1:
            at += 8
        else:  # a group, which no message here has, or nothing known
            raise NotProtobuf
        if at > end:
            raise NotProtobuf


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of at most ten bytes with seven bits each, lowest first, and where it ends. Raises NotProtobuf."""
    try:
        value = message[at]
        at += 1
        if value < 128:
            return value, at
        value &= 127
        for shift in range(7, 70, 7):
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
    except IndexError:
        pass
    raise NotProtobuf
