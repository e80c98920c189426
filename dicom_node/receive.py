"""Receives slices over DICOM: a C-ECHO and C-STORE SCP that acknowledges a slice when it is in the spool."""

import logging
import socket
import ssl
from typing import Any, Final

from pydicom import Dataset, uid
from pydicom.pixels.utils import get_expected_length
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification

from dicom_node import metrics
from dicom_node.reading import read
from dicom_node.settings import Settings
from dicom_node.spool import OtherContent, Spool, SpoolFull, key_of

LOG: Final = logging.getLogger(__name__)

SYNTAXES: Final = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.RLELossless,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEGLSNearLossless,
    uid.JPEG2000Lossless,
    uid.JPEG2000,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.HTJ2K,
)
"""The transfer syntaxes that the service reads."""
STORED: Final = 0x0000
NO_ROOM: Final = 0xA700
CONFLICT: Final = 0x0111
OTHER_CLASS: Final = 0x0122
NOT_CT: Final = 0xA900
MALFORMED: Final = 0xC000
_LONGEST_PDU: Final = 256 * 1024
"""Most bytes of a PDU. The node negotiates 16 KiB for data. A request for 128 classes in 45 syntaxes has 158 kB.

pynetdicom parses a stranger's request before the node can reject it. 1 MB of small items took up to 4 s of CPU time."""
_IDENTIFIERS: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_DATA: Final = 0x04
"""Type of the PDU that carries data."""
_COMMAND_BYTES: Final = 1024
"""More than the bytes of a message beside its instance."""
_MOST_WAITING: Final = 16
"""Most messages of an association that wait. The standard allows one, unless the peers agree on more."""


class Refused(Exception):
    """An instance that is not taken. `comment` says why, in 64 characters at most and without its content."""

    def __init__(self, status: int, outcome: str, comment: str) -> None:
        super().__init__(comment)
        self.status = status
        self.outcome = outcome
        self.comment = comment


def check(data: bytes, sop_instance: str) -> tuple[str, str]:
    """Check a CT slice that was announced with this SOP Instance UID.

    `data` is a DICOM file. Returns the key of its series and its name in the spool. Raises Refused.
    """
    try:
        header = read(data)
        modality = header.get("Modality")
        found = [str(header.get(keyword) or "") for keyword in _IDENTIFIERS]
        announced = (header.get("SOPClassUID"), found[2]) == (uid.CTImageStorage, sop_instance)
        complete = _has_all_pixels(header)
    except Exception:  # noqa: BLE001 - pydicom raises many kinds, and quotes the header
        raise Refused(MALFORMED, "malformed", "the data set can't be parsed, or is too large") from None
    if not complete:
        raise Refused(MALFORMED, "malformed", "the data set ends before its pixels do")
    if modality != "CT":
        raise Refused(NOT_CT, "not_ct", "the modality is not CT")
    if not all(found) or not announced:
        raise Refused(NOT_CT, "not_ct", "UIDs are missing, or differ from those of the request")
    return key_of(*found[:2]), key_of(found[2])


def _has_all_pixels(header: Dataset) -> bool:
    if "PixelData" not in header:
        return False
    if header.file_meta.TransferSyntaxUID.is_encapsulated:
        return bool(header.PixelData)  # pydicom finds no pixels unless their end is there
    return len(header.PixelData) >= int(get_expected_length(header))


class Receiver:
    """Listens for associations. `spool` takes the slices."""

    def __init__(self, settings: Settings, spool: Spool) -> None:
        """Open the port. Raises OSError, with ssl.SSLError for a bad certificate."""
        self._settings = settings
        self._spool = spool
        self._unfinished: dict[Any, int] = {}
        """Bytes that each association has sent since it had nothing unfinished and nothing waiting."""
        self._entity = AE(settings.ae_title)
        self._entity.require_called_aet = True
        self._entity.maximum_associations = settings.max_associations
        self._entity.network_timeout = settings.request_timeout
        self._entity.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:  # others than CT are taken in to be refused by a status
            self._entity.add_supported_context(context.abstract_syntax, list(SYNTAXES))
        handlers = [
            (evt.EVT_CONN_OPEN, _limit_pdus),
            (evt.EVT_REQUESTED, self._admit),
            (evt.EVT_PDU_RECV, self._measure),
            (evt.EVT_CONN_CLOSE, self._forget),
            (evt.EVT_C_ECHO, lambda event: STORED),
            (evt.EVT_C_STORE, self._store),
        ]
        self._server = self._entity.start_server(
            (settings.host, settings.port), block=False, ssl_context=_tls(settings), evt_handlers=handlers
        )

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def open_associations(self) -> int:
        return len(self._entity.active_associations)

    def stop_listening(self) -> None:
        """Take no further associations. Those that are open go on."""
        self._server.shutdown()

    def close(self) -> None:
        """End the open associations."""
        for association in self._entity.active_associations:
            if association.is_established:
                association.abort()
            else:
                association.kill()

    def _admit(self, event: Any) -> None:
        association = event.assoc
        title, address = association.requestor.primitive.calling_ae_title, association.requestor.address
        if not any(caller.admits(title, address) for caller in self._settings.callers):
            metrics.ASSOCIATIONS_REJECTED.inc()
            LOG.warning("rejected an association of %s: DICOM_NODE_CALLERS does not name it", address)
            association.acse.send_reject(0x01, 0x01, 0x03)  # permanent, by the user, calling AE title not recognised
            association.kill()

    def _measure(self, event: Any) -> None:
        """End an association that sends too much before it takes more memory.

        That is one message that is too long, or many that it sends without waiting for the answers.
        """
        if event.pdu.pdu_type != _DATA:
            return
        association = event.assoc
        waiting = association.dimse.msg_queue.qsize()
        before = self._unfinished.get(association, 0) if waiting or association.dimse.message is not None else 0
        size = self._unfinished[association] = before + event.pdu.pdu_length
        if size > self._settings.max_instance_bytes + _COMMAND_BYTES or waiting > _MOST_WAITING:
            metrics.ASSOCIATIONS_ABORTED.inc()
            LOG.warning("ended an association: it sends more than DICOM_NODE_MAX_INSTANCE_BYTES at once")
            association.abort()

    def _forget(self, event: Any) -> None:
        self._unfinished.pop(event.assoc, None)

    def _store(self, event: Any) -> Dataset:
        request = event.request
        answer = Dataset()
        try:
            if request.AffectedSOPClassUID != uid.CTImageStorage:
                raise Refused(OTHER_CLASS, "other_class", "only CT Image Storage is taken")
            outcome = self._take(event.encoded_dataset(), str(request.AffectedSOPInstanceUID))
            answer.Status = STORED
        except Refused as refused:
            outcome, answer.Status, answer.ErrorComment = refused.outcome, refused.status, refused.comment
            LOG.warning("refused an instance with status %04X: %s", refused.status, refused.comment)
        metrics.RECEIVED.labels(outcome).inc()
        return answer

    def _take(self, data: bytes, sop_instance: str) -> str:
        key, name = check(data, sop_instance)
        try:
            return "stored" if self._spool.take(key, name, data) else "duplicate"
        except SpoolFull:
            raise Refused(NO_ROOM, "spool_full", "the spool is full; send again later") from None
        except OtherContent:
            raise Refused(CONFLICT, "conflict", "another instance has this SOP Instance UID") from None
        except OSError as error:
            LOG.error("can't write to the spool: %s", error.strerror)
            raise Refused(NO_ROOM, "spool_full", "the spool can't be written; send again later") from None


def _limit_pdus(event: Any) -> None:
    """Close a connection whose PDU is announced as too long. pynetdicom would read 4 GiB of anyone's."""
    connection = event.assoc.dul.socket
    receive = connection.recv

    def receive_bounded(size: int) -> bytearray:
        if size > _LONGEST_PDU:
            raise OSError("the PDU is too long")
        data: bytearray = receive(size)
        return data

    connection.recv = receive_bounded


class _Handshakes(ssl.SSLContext):
    """Leaves the handshake to the association's thread, so that a silent peer does not keep others waiting."""

    seconds: float

    def wrap_socket(self, sock: socket.socket, server_side: bool = False, **options: Any) -> ssl.SSLSocket:  # type: ignore[override]
        sock.settimeout(self.seconds)
        return super().wrap_socket(sock, server_side, do_handshake_on_connect=False, **options)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.certificate is None:
        return None
    context = _Handshakes(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.seconds = settings.request_timeout
    context.load_cert_chain(settings.certificate, settings.certificate_key)
    if settings.authorities is not None:
        context.load_verify_locations(settings.authorities)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
