"""The gRPC server's certificate, which is checked before it is used."""

import contextlib
import ssl
from pathlib import Path
from typing import Final

_ROUNDS: Final = 3
"""Turns of client and server until a handshake of TLS 1.2 or 1.3 is over."""


class CertificateError(ValueError):
    """The certificate or its key can't be used. The message is one line that says why."""


def read_end(certificate: Path, key: Path) -> float:
    """Check that a client could accept the certificate now, with its private key. Returns when it ends (Unix time).

    Both are PEM files. Raises CertificateError, also for a certificate that has expired or is not valid yet.
    """
    try:
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        server.load_cert_chain(certificate, key)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # trusts the certificate itself, whoever signed it
        client.load_verify_locations(certificate)
        return _shake_hands(client, server)
    except ssl.SSLCertVerificationError as error:
        raise CertificateError(f"{certificate}: {error.verify_message}; renew it, or look at the clock") from error
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise CertificateError(f"{certificate} and its key {key}: {error}") from error


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> float:
    """Let the two meet in memory. Returns when the certificate that the client has verified ends (Unix time)."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(_ROUNDS):
        for end in (one, other):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    verified = one.getpeercert()
    assert verified is not None
    return float(ssl.cert_time_to_seconds(str(verified["notAfter"])))
