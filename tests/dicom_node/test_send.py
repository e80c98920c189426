"""Objects go to a PACS, and what it says decides whether they go again."""

import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import ComprehensiveSRStorage, SecondaryCaptureImageStorage

from dicom_node.failures import GivenUp, Later
from dicom_node.objects import make_objects
from dicom_node.send import sender
from dicom_node.settings import Settings
from tests.dicom_node.certificates import certificate_of_the_loopback
from tests.dicom_node.pacs import Pacs
from tests.dicom_node.results import answer, result, revision
from tests.dicom_node.running import free_ports

Make = Callable[..., Settings]


@pytest.fixture
def objects(tmp_path: Path) -> list[Path]:
    folder = revision(tmp_path / "made", 1)
    folder.write_objects(make_objects(folder, result(answer(0.7, 0.1, 0.1, 0.1))))
    return folder.objects()


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB007, 0x0111])
def test_what_the_pacs_takes_is_done(settings: Make, pacs: Pacs, objects: list[Path], status: int) -> None:
    pacs.status = status
    sender(settings(return_to=pacs.address))(objects)
    assert len(pacs.files) == (2 if status == 0x0000 else 0)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [(0xA700, Later, "no room: status A700"), (0xA900, GivenUp, "status A900"), (0xC123, GivenUp, "status C123")],
)
def test_what_the_pacs_refuses_goes_again_or_not(
    settings: Make, pacs: Pacs, objects: list[Path], status: int, kind: type[Exception], words: str
) -> None:
    pacs.status = status
    with pytest.raises(kind, match=words):
        sender(settings(return_to=pacs.address))(objects)


def test_a_pacs_that_is_away_or_does_not_know_the_node_is_asked_again(settings: Make, objects: list[Path]) -> None:
    (port,) = free_ports(1)
    with pytest.raises(Later, match="can't be reached"):
        sender(settings(return_to=f"dicom://PACS@127.0.0.1:{port}"))(objects)
    entity = AE("PACS")
    entity.require_calling_aet = ["OTHER"]
    entity.add_supported_context(ComprehensiveSRStorage)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    with pytest.raises(Later, match="rejects the association: does it know the AE titles"):
        sender(settings(return_to=f"dicom://PACS@127.0.0.1:{server.server_address[1]}"))(objects)
    server.shutdown()


def test_a_pacs_that_takes_no_reports_is_given_up(settings: Make, objects: list[Path]) -> None:
    entity = AE("PACS")
    entity.add_supported_context(SecondaryCaptureImageStorage)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    with pytest.raises(GivenUp, match="does not take Comprehensive SR or Secondary Capture"):
        sender(settings(return_to=f"dicom://PACS@127.0.0.1:{server.server_address[1]}"))(objects)
    server.shutdown()


def test_results_go_over_tls(settings: Make, objects: list[Path], tmp_path: Path) -> None:
    certificate, key = certificate_of_the_loopback(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    got: list[str] = []

    def store(event: evt.Event) -> int:
        got.append(event.request.AffectedSOPClassUID)
        return 0x0000

    entity = AE("PACS")
    for sop_class in (ComprehensiveSRStorage, SecondaryCaptureImageStorage):
        entity.add_supported_context(sop_class)
    handlers = [(evt.EVT_C_STORE, store)]
    server = entity.start_server(("127.0.0.1", 0), block=False, ssl_context=context, evt_handlers=handlers)
    address = f"dicoms://PACS@localhost:{server.server_address[1]}"
    sender(settings(return_to=address, authorities=certificate))(objects)
    assert got == [ComprehensiveSRStorage, SecondaryCaptureImageStorage]
    with pytest.raises(Later):
        sender(settings(return_to=address))(objects)  # nobody vouches for this PACS
    server.shutdown()


class Web(ThreadingHTTPServer):
    """A STOW-RS server that gives every request one status."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = 200
        self.authorizations: list[str | None] = []


class _Answer(BaseHTTPRequestHandler):
    server: Web

    def do_POST(self) -> None:
        self.server.authorizations.append(self.headers["Authorization"])
        if self.headers["Transfer-Encoding"] == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        else:
            self.rfile.read(int(self.headers["Content-Length"]))
        body = b"{}"
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Log nothing."""


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (503, Later, "answers 503"),
        (429, Later, "answers 429"),
        (401, GivenUp, "answers 401"),
        (409, GivenUp, "refuses all results"),
    ],
)
def test_the_status_of_a_stow_server_decides(
    settings: Make, web: Web, objects: list[Path], status: int, kind: type[Exception], words: str
) -> None:
    web.status = status
    with pytest.raises(kind, match=words):
        sender(settings(return_to=f"http://127.0.0.1:{web.server_port}/dicom-web"))(objects)
    assert len(web.authorizations) == 1  # the node's own pauses lie between two attempts


def test_a_stow_server_gets_the_header_of_the_file(
    settings: Make, web: Web, objects: list[Path], tmp_path: Path
) -> None:
    file = tmp_path / "authorization"
    file.write_text("Bearer abc\n")
    address = f"http://127.0.0.1:{web.server_port}/dicom-web"
    sender(settings(return_to=address, return_authorization_file=file))(objects)
    assert web.authorizations == ["Bearer abc"]


def test_a_stow_server_that_is_away_is_asked_again(settings: Make, objects: list[Path]) -> None:
    (port,) = free_ports(1)
    with pytest.raises(Later, match="can't be reached: ConnectionError"):
        sender(settings(return_to=f"http://127.0.0.1:{port}/dicom-web"))(objects)
