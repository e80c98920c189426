"""Sends objects to the PACS by C-STORE or STOW-RS. A repeat is harmless, because the objects keep their UIDs."""

import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import requests
from dicomweb_client import DICOMwebClient
from pydicom import dcmread, uid
from pynetdicom import AE
from pynetdicom.sop_class import ComprehensiveSRStorage, SecondaryCaptureImageStorage

from dicom_node.failures import GivenUp, Later
from dicom_node.settings import Settings

_STORED: Final = 0x0000
DUPLICATE: Final = 0x0111
"""The PACS has this object already."""
_WARNING: Final = 0xB000
_NO_ROOM: Final = 0xA700
_KIND: Final = 0xF000
"""The digit of a status that tells warnings from failures."""
_SYNTAXES: Final = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian]


def sender(settings: Settings) -> Callable[[Sequence[Path]], None]:
    """The function that sends files to where `return_to` says. It raises Later and GivenUp."""
    by_stow = urlsplit(settings.return_to).scheme in ("http", "https")
    return StowSender(settings) if by_stow else StoreSender(settings)


class StoreSender:
    """Sends by C-STORE."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, paths: Sequence[Path]) -> None:
        parts = urlsplit(self._settings.return_to)
        entity = AE(self._settings.ae_title)
        entity.network_timeout = entity.dimse_timeout = entity.acse_timeout = self._settings.request_timeout
        entity.connection_timeout = self._settings.request_timeout
        for sop_class in (ComprehensiveSRStorage, SecondaryCaptureImageStorage):
            entity.add_requested_context(sop_class, _SYNTAXES)
        tls = (_tls(self._settings), parts.hostname) if parts.scheme == "dicoms" else None
        association = entity.associate(parts.hostname, parts.port, ae_title=parts.username, tls_args=tls)
        if association.is_rejected:
            raise Later("the PACS rejects the association: does it know the AE titles?")
        if not association.is_established:
            raise Later("the PACS can't be reached")
        try:
            for path in paths:
                answer = association.send_c_store(dcmread(path))
                if "Status" not in answer:
                    raise Later("the PACS ended the association")
                _judge("status", int(answer.Status))
        except ValueError:
            raise GivenUp("the PACS does not take Comprehensive SR or Secondary Capture") from None
        finally:
            association.release()


class StowSender:
    """Sends by STOW-RS."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, paths: Sequence[Path]) -> None:
        headers = {}
        if self._settings.return_authorization_file is not None:
            value = self._settings.return_authorization_file.read_text(encoding="utf-8").strip()
            headers["Authorization"] = value
        session = requests.Session()
        if self._settings.authorities is not None:
            session.verify = str(self._settings.authorities)
        timeout = self._settings.request_timeout
        client = DICOMwebClient(self._settings.return_to, session=session, headers=headers, timeout=timeout)
        client.set_http_retry_params(retry=False)
        try:
            answer = client.store_instances([dcmread(path) for path in paths])
        except requests.HTTPError as error:
            status = 0 if error.response is None else error.response.status_code
            if status in (408, 429) or status >= 500:
                raise Later(f"the PACS answers {status}") from None
            if status == requests.codes.conflict:
                raise GivenUp("the PACS refuses all results: it answers 409") from None
            raise GivenUp(f"the PACS answers {status}") from None
        except requests.RequestException as error:
            raise Later(f"the PACS can't be reached: {type(error).__name__}") from None
        for item in answer.get("FailedSOPSequence", ()):
            _judge("reason", int(item.FailureReason))


def _judge(what: str, code: int) -> None:
    """Raise Later or GivenUp unless the PACS has the object. `code` is a status of C-STORE, or a Failure Reason."""
    if code in (_STORED, DUPLICATE) or code & _KIND == _WARNING:
        return
    if code & 0xFF00 == _NO_ROOM:
        raise Later(f"the PACS has no room: {what} {code:04X}")
    raise GivenUp(f"the PACS refuses a result: {what} {code:04X}")


def _tls(settings: Settings) -> ssl.SSLContext:
    authorities = None if settings.authorities is None else str(settings.authorities)
    context = ssl.create_default_context(cafile=authorities)
    if settings.certificate is not None:
        context.load_cert_chain(settings.certificate, settings.certificate_key)
    return context
