"""Reads the files of a multipart/form-data body in memory, by RFC 2046, 7578 and 5987.

Starlette reads forms with python-multipart, which refuses a preamble and blanks after a boundary. Starlette also treats
a part with only `filename*` as text, and fails for an invalid charset. So this module cuts the parts at the boundary,
and Python's email package reads their headers.
"""

import re
from collections.abc import Iterator
from email.message import Message
from email.parser import HeaderParser
from typing import Final

from serving.http.body import check_encoding
from serving.http.errors import bad_request

_LONGEST_BOUNDARY: Final = 256
"""Most characters of a boundary. The standard allows 70."""
_LONGEST_LINE: Final = 1024
"""Most bytes of a Content-Type, and of the blanks after a boundary."""
_LONGEST_HEADERS: Final = 2 * 1024
"""Most bytes of a part's headers. The email package's time grows with their square."""
_TRANSFER_ENCODINGS: Final = ("binary", "8bit", "7bit")
"""Transfer encodings that leave the bytes unchanged."""


def read_files(content_type: str, body: bytes, name: str, at_most: int) -> list[bytes]:
    """The contents of the form's files: 1 to `at_most`, all in the field `name`.

    A part is a file if it has a file name, a type other than text, or bytes that are not text. Raises RequestError.
    """
    expected = f"one file in the field {name!r}" if at_most == 1 else f"1 to {at_most} files in the field {name!r}"
    files: list[bytes] = []
    try:
        for headers, content in _parts(body, _boundary(content_type)):
            field = _field(headers)
            if field != name:
                raise _Malformed(f"got a field {field[:64]!r}")
            if not _is_file(headers, content):
                raise _Malformed("got text, not a file")
            if len(files) == at_most:
                raise _Malformed("got more")
            _check_encodings(headers)
            files.append(content)
        if not files:
            raise _Malformed("got none")
    except _Malformed as error:
        raise bad_request("invalid_form", f"expected {expected}, {error}") from None
    return files


class _Malformed(ValueError):
    """An invalid form. The message says what came."""


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["Content-Type"] = content_type[:_LONGEST_LINE]
    boundary = _parameter(message, "Content-Type", "boundary")
    if not boundary or len(boundary) > _LONGEST_BOUNDARY:
        raise _Malformed(f"got a Content-Type without a boundary of 1 to {_LONGEST_BOUNDARY} characters")
    return boundary.rstrip().encode("latin-1", "replace")


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[Message, bytes]]:
    """The headers and the content of each part. Text before the first boundary and after the last is no part."""
    mark = re.escape(b"--" + boundary) + rb"(?=[-\s]|\Z)"  # a longer word is content
    found = re.match(mark, body) or re.search(rb"\n" + mark, body)
    if found is None:
        raise _Malformed(f"got {len(body)} bytes without the boundary that Content-Type names")
    line = re.compile(rb"\r\n" + mark)
    while body[found.end() : found.end() + 2] != b"--":
        head = _end_of_line(body, found.end())
        found = line.search(body, head)
        if found is None:
            raise _Malformed("got a form that breaks off before its last boundary")
        blank = body.find(b"\r\n\r\n", head, found.start())
        if blank < 0:  # a part without content
            blank = found.start()
        if blank - head > _LONGEST_HEADERS:
            raise _Malformed(f"got a part with more than {_LONGEST_HEADERS} bytes of headers")
        text = body[head + 2 : blank].decode("utf-8", "replace")
        yield HeaderParser().parsestr(text), body[blank + 4 : found.start()]


def _end_of_line(body: bytes, position: int) -> int:
    """The end of the boundary's line, which may hold nothing else but blanks."""
    end = body.find(b"\r\n", position, position + _LONGEST_LINE)
    if end >= 0 and not body[position:end].strip(b" \t"):
        return end
    if body[position : position + _LONGEST_LINE].lstrip(b" \t").startswith(b"\n"):
        raise _Malformed("got lines that end in LF alone: in a form they end in CR LF")
    raise _Malformed("got a boundary with something else than a line break behind it")


def _field(headers: Message) -> str:
    name = _parameter(headers, "Content-Disposition", "name")
    if name is None:
        raise _Malformed("got a part without Content-Disposition: form-data and a name")
    return name


def _is_file(headers: Message, content: bytes) -> bool:
    if _parameter(headers, "Content-Disposition", "filename") is not None or headers.get_content_maintype() != "text":
        return True
    try:
        return "\0" in content.decode("utf-8")
    except UnicodeDecodeError:
        return True


def _check_encodings(headers: Message) -> None:
    check_encoding(str(value) for value in headers.get_all("Content-Encoding", ()))
    transfer = str(headers.get("Content-Transfer-Encoding", "binary")).strip().lower()
    if transfer not in _TRANSFER_ENCODINGS:
        check_encoding([transfer])


def _parameter(message: Message, header: str, name: str) -> str | None:
    try:
        value = message.get_param(name, header=header)
    except (TypeError, ValueError):  # from the email package, for some values that RFC 2231 does not allow
        raise _Malformed(f"got a {header} that can't be read") from None
    if isinstance(value, tuple):  # charset, language, and the bytes as Latin-1
        return value[2].encode("latin-1", "replace").decode("utf-8", "replace")
    return value
