"""Valid and invalid forms."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.http.errors import RequestError
from serving.http.form import read_files

FILE = b"\x89PNG\r\n--\r\n\x1a\n\0 the file\r\n--bytes\r\n\r\n --b\r\n"
"""Content with the characters of a boundary."""
DISPOSITION = b'Content-Disposition: form-data; name="image"'
NAMED = DISPOSITION + b'; filename="a.png"\r\n'


def form(
    *parts: bytes, boundary: bytes = b"b", before: bytes = b"", blanks: bytes = b"", after: bytes = b"\r\n"
) -> bytes:
    """Each part is its headers, a blank line and its content."""
    line = b"--" + boundary + blanks + b"\r\n"
    return before + b"".join(line + part + b"\r\n" for part in parts) + b"--" + boundary + b"--" + blanks + after


def part(headers: bytes = NAMED, content: bytes = FILE) -> bytes:
    return headers + b"\r\n" + content


def read(body: bytes, content_type: str = "multipart/form-data; boundary=b", at_most: int = 1) -> list[bytes]:
    return read_files(content_type, body, "image", at_most)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(form(part()), id="plain"),
        pytest.param(form(part(), after=b""), id="nothing behind the last boundary"),
        pytest.param(form(part(), after=b"\r\nan epilogue\r\n--b\r\nthat looks like a part"), id="epilogue"),
        pytest.param(form(part(), before=b"\r\n"), id="line break before"),
        pytest.param(form(part(), before=b"a preamble\r\n"), id="preamble"),
        pytest.param(form(part(), before=b"--bare line\nand another\n"), id="preamble of several lines"),
        pytest.param(form(part(), blanks=b" \t "), id="blanks behind the boundaries"),
        pytest.param(form(part(DISPOSITION + b"; filename*=UTF-8''%e2%82%ac.png\r\n")), id="filename* alone"),
        pytest.param(form(part(DISPOSITION + b"; filename*0=a; filename*1=.png\r\n")), id="file name in pieces"),
        pytest.param(form(part(DISPOSITION + b"; filename*=undefined''%ff\r\n")), id="file name of no charset"),
        pytest.param(form(part(DISPOSITION + b'; filename="\xe4\xff\0.png"\r\n')), id="file name that is no UTF-8"),
        pytest.param(form(part(DISPOSITION + b'; filename=""\r\n')), id="empty file name"),
        pytest.param(form(part(DISPOSITION + b'; filename="a\\"; name=\\"b.png"\r\n')), id="quotes in the file name"),
        pytest.param(form(part(DISPOSITION + b'; filename="C:\\a;b.png"\r\n')), id="path and semicolon"),
        pytest.param(form(part(b"Content-Type: image/png\r\n" + DISPOSITION + b"\r\n")), id="type, no file name"),
        pytest.param(form(part(b"Content-Type: text/plain\r\n" + DISPOSITION + b"\r\n")), id="binary called text"),
        pytest.param(form(part(DISPOSITION + b"\r\n")), id="neither type nor file name"),
        pytest.param(form(part(NAMED + b"Content-Type: what/ever; charset=undefined\r\n")), id="charset undefined"),
        pytest.param(form(part(NAMED + b"Content-Type: \xff\xfe\r\n")), id="type that is no text"),
        pytest.param(form(part(NAMED + b"Content-Transfer-Encoding: BINARY\r\n")), id="transfer encoding binary"),
        pytest.param(form(part(NAMED + b"Content-Encoding: Identity \r\n")), id="content encoding identity"),
        pytest.param(form(part(b"CONTENT-DISPOSITION:form-data;name=image;filename=a\r\n")), id="tokens, no blanks"),
        pytest.param(form(part(b"Content-Disposition: form-data;\r\n name=image;\r\n\tfilename=a\r\n")), id="folded"),
        pytest.param(form(part(b"Content-Disposition: form-data; name*=utf-8''im%61ge; filename=a\r\n")), id="name*"),
    ],
)
def test_a_file_is_read_byte_by_byte(body: bytes) -> None:
    assert read(body) == [FILE]


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=b", b"b"),
        ('multipart/form-data; boundary="b"', b"b"),
        ('Multipart/Form-Data; charset=undefined; BOUNDARY="a b:=?/()"', b"a b:=?/()"),
        ("multipart/form-data;boundary=----x'+_,-./", b"----x'+_,-./"),
        ("multipart/form-data; boundary=b; charset=idna", b"b"),
        ("multipart/form-data; boundary*=utf-8''b%2Bc", b"b+c"),
        (f"multipart/form-data; boundary={70 * 'x'}", 70 * b"x"),
    ],
)
def test_a_boundary_is_read_in_every_notation(content_type: str, boundary: bytes) -> None:
    assert read(form(part(), boundary=boundary), content_type) == [FILE]


def test_files_keep_their_order_and_empty_ones_are_files() -> None:
    body = form(part(content=b"1"), part(content=b""), NAMED[:-2], part(content=b"4"))
    assert read(body, at_most=4) == [b"1", b"", b"", b"4"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(form(part(DISPOSITION + b"\r\n", b"slice.png")), "got text, not a file", id="text"),
        pytest.param(
            form(part(b"Content-Type: text/plain; charset=undefined\r\n" + DISPOSITION + b"\r\n", b"a")),
            "got text, not a file",
            id="text of no charset",
        ),
        pytest.param(form(part(), part()), "got more", id="two files"),
        pytest.param(form(), "got none", id="no part"),
        pytest.param(form(part(b'Content-Disposition: form-data; name="x"\r\n')), "a field 'x'", id="another field"),
        pytest.param(form(part(b"Content-Disposition: form-data\r\n")), "and a name", id="no name"),
        pytest.param(form(part(b"Content-Type: image/png\r\n")), "and a name", id="no disposition"),
        pytest.param(form(part(b"")), "and a name", id="no headers"),
        pytest.param(form(part(b"no header at all\r\n")), "and a name", id="no header"),
        pytest.param(form(part(NAMED + b"X: " + bytes(9000) + b"\r\n")), "2048 bytes of headers", id="long headers"),
        pytest.param(form(part()).replace(b"\r\n", b"\n"), "end in LF alone", id="LF alone"),
        pytest.param(form(part(), boundary=b"bb"), "without the boundary", id="longer boundary"),
        pytest.param(form(part(), boundary=b"c"), "without the boundary that Content-Type names", id="other boundary"),
        pytest.param(form(part())[:-6], "breaks off before its last boundary", id="cut in the last boundary"),
        pytest.param(form(part())[:40], "breaks off before its last boundary", id="cut in the headers"),
        pytest.param(b"--b", "something else than a line break", id="a boundary alone"),
        pytest.param(b"--b-\r\n", "something else than a line break", id="half a last boundary"),
        pytest.param(b"--b x\r\n", "something else than a line break", id="a boundary and a word"),
        pytest.param(FILE, "without the boundary", id="a file alone"),
    ],
)  # fmt: skip
def test_an_invalid_form_is_refused_with_what_came(body: bytes, words: str) -> None:
    with pytest.raises(RequestError, match=r"^expected one file in the field 'image', got ") as refused:
        read(body)
    assert (refused.value.status, refused.value.code) == (400, "invalid_form")
    assert words in refused.value.message


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary*=undefined''",
        f"multipart/form-data; boundary={257 * 'x'}",
        "multipart/form-data" + 60_000 * ";" + "boundary=b",
    ],
)
def test_a_content_type_without_a_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(RequestError, match=r"^expected one file in the field 'image', got a Content-Type ") as refused:
        read(form(part()), content_type)
    assert refused.value.code == "invalid_form"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(part(DISPOSITION + b"; filename*=a; filename*0=b\r\n")), "multipart/form-data; boundary=b"),
        (form(part()), "multipart/form-data; boundary*=a; boundary*0=b"),
    ],
    ids=["file name", "boundary"],
)
def test_a_parameter_given_whole_and_in_pieces_is_read_or_refused(body: bytes, content_type: str) -> None:
    """RFC 2231 does not allow it. Python's email package reads it from 3.13 on, and raises before."""
    found: list[bytes] | None = None
    with contextlib.suppress(RequestError):
        found = read(body, content_type)
    assert found in (None, [FILE])


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ("Content-Encoding: gzip", "gzip"),
        ("Content-Encoding: identity, BR", "BR"),
        ("Content-Transfer-Encoding: base64", "base64"),
        ("Content-Transfer-Encoding: Quoted-Printable", "quoted-printable"),
    ],
)
def test_an_encoded_part_is_refused_and_its_encoding_named(header: str, encoding: str) -> None:
    with pytest.raises(RequestError, match=f"got {encoding}$") as refused:
        read(form(part(NAMED + header.encode() + b"\r\n")))
    assert (refused.value.status, refused.value.code) == (415, "unsupported_encoding")


@given(st.binary(max_size=200), st.binary(max_size=60), st.text(st.characters(codec="latin-1"), max_size=60))
def test_any_form_is_read_or_raises_a_request_error(headers: bytes, content: bytes, parameters: str) -> None:
    for body, content_type in (
        (form(part(headers, content)), "multipart/form-data; boundary=b"),
        (form(part(DISPOSITION + b";" + headers + b"\r\n", content)), "multipart/form-data; boundary=b"),
        (form(part(), before=headers, after=content), f"multipart/form-data; boundary=b; {parameters}"),
    ):
        with contextlib.suppress(RequestError):
            read(body, content_type)
