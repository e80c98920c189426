"""Limits on a protobuf message before it is parsed: an empty field is two bytes there and 90 as an object."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor


class Content(Enum):
    """The content of a field that may be long."""

    PICTURES = auto()
    PIXELS = auto()
    """A packed list of numbers. Each takes four bytes when it is parsed."""


class Limits(NamedTuple):
    """The most that a message may hold, on all levels together."""

    fields: int
    pixel_bytes: int
    """Bytes of Content.PIXELS."""
    text_bytes: int = 64 * 1024
    """Bytes of names, parameters and unknown fields: all except pictures and pixels."""


_VARINT: Final = 0
_SIZED: Final = 2
_FIXED: Final = {1: 8, 5: 4}
"""Kinds of values on the wire, by the lowest three bits of a tag: a number of up to ten bytes, a length and that many
bytes, and numbers of so many bytes."""

Layout = Mapping[int, "Layout | Content"]
"""A message's fields by number: those that are messages or may be long."""

_LONG: Final = {
    "bytes_contents": Content.PICTURES,
    "raw_input_contents": Content.PICTURES,
    "uint_contents": Content.PIXELS,
}


class NotProtobuf(ValueError):
    """The bytes are not in protobuf's wire format."""


class TooMuch(ValueError):
    """Parsed, the message would take far more memory than its bytes. The error's message says what is allowed."""


def read_layout(descriptor: Descriptor | None) -> Layout:
    """The layout of a message from its descriptor; empty for None."""
    fields = descriptor.fields if descriptor else ()
    layout: dict[int, Layout | Content] = {f.number: _LONG[f.name] for f in fields if f.name in _LONG}
    messages = (field for field in fields if field.type == FieldDescriptor.TYPE_MESSAGE)
    return layout | {field.number: read_layout(field.message_type) for field in messages}


def check_size(message: bytes, layout: Layout, limits: Limits) -> None:
    """Raise NotProtobuf, and TooMuch if the message holds more than the limits."""
    at, end = 0, len(message)
    fields, pixels, text = limits
    outer: list[tuple[Layout, int]] = []
    while True:
        while at == end:
            if not outer:
                return
            layout, end = outer.pop()
        fields -= 1
        if fields < 0:
            raise TooMuch(f"at most {limits.fields} fields, on all levels together, got more")
        tag = message[at]
        if tag < 128:  # as all tags of these messages are
            at += 1
        else:
            tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == _SIZED:
            size, at = _read_varint(message, at)
            content = layout.get(tag >> 3)
            if content is Content.PIXELS:
                pixels -= size
                if pixels < 0:
                    raise TooMuch(f"at most {limits.pixel_bytes} bytes of uint_contents, got more; send pixels raw")
            elif content and not isinstance(content, Content):  # a message: its fields come next
                if at + size > end:
                    raise NotProtobuf
                outer.append((layout, end))
                layout, end = content, at + size
                continue
            elif not content:
                text -= size
                if text < 0:
                    raise TooMuch(f"at most {limits.text_bytes} bytes beside pictures and pixels, got more")
            at += size
        elif kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:  # a group, which no message here has, or an unknown kind
            raise NotProtobuf
        if at > end:
            raise NotProtobuf


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Read a number of at most ten bytes with seven bits each, lowest first. Returns it and the position after it."""
    value, shift = 0, 0
    try:
        while shift < 70:
            byte = message[at]
            at += 1
            if byte < 128:
                return value | byte << shift, at
            value |= (byte & 127) << shift
            shift += 7
    except IndexError:
        pass
    raise NotProtobuf
