"""Settings of the DICOM node, from environment variables with the prefix DICOM_NODE_.

`python -m docs.tables` writes their table into docs/reference/dicom-node.md.
"""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import Field, FilePath, HttpUrl, field_validator, model_validator
from pydantic_settings import NoDecode

from chestct.environment_settings import EnvironmentSettings
from chestct.environment_settings import SettingsError as SettingsError

PREFIX: Final = "DICOM_NODE_"

Title = Annotated[str, Field(pattern=r"^[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?$")]
"""An AE title: 1 to 16 printable characters without a backslash."""


class Caller(NamedTuple):
    """Who may send: an AE title, from the addresses of a network."""

    title: str
    """`*` is any title."""
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None
    """None is any address."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `TITLE` or `TITLE@NETWORK`. Raises ValueError."""
        title, _, network = text.strip().partition("@")
        if not title or len(title) > 16:
            raise ValueError(f"expected TITLE or TITLE@NETWORK, got {text!r}")
        return cls(title, ipaddress.ip_network(network) if network else None)

    def admits(self, title: str, address: str) -> bool:
        """Whether this is the title and the address of the peer."""
        if self.title not in ("*", title.strip()):
            return False
        peer = ipaddress.ip_address(address)
        return self.network is None or (getattr(peer, "ipv4_mapped", None) or peer) in self.network


class Settings(EnvironmentSettings, env_prefix=PREFIX):
    """The settings, read once by `Settings.read`. Each field is the variable DICOM_NODE_<NAME>."""

    kubernetes_sets = re.compile(r"^DICOM_NODE_(PORT_|PORT=tcp:|(\w+_)?SERVICE_(HOST|PORT))")

    spool: Path
    """Folder of received slices and results. It must survive a restart, and it holds patients' data."""
    callers: Annotated[tuple[Caller, ...], NoDecode, Field(min_length=1)]
    """Who may send, separated by commas: `CT1@10.1.0.0/16, ORTHANC@10.1.0.7, TEST`. `*` is any title."""
    return_to: str
    """Where results go: `dicom://TITLE@HOST:PORT`, `dicoms://` for TLS, or a STOW-RS address with `https://`."""
    service: HttpUrl = HttpUrl("http://localhost:3000")
    """Address of the service that scores."""
    api_key_file: FilePath | None = None
    """File with the API key for the service. It is read for each request."""
    ae_title: Title = "CHESTCT"
    """The node's own AE title. Associations that call another one are rejected."""
    host: Annotated[str, Field(min_length=1)] = "0.0.0.0"
    """Address that the node receives on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 11112
    """Port that the node receives on; 0 is any free one."""
    certificate: FilePath | None = None
    """PEM file with the node's certificate chain. With it the node receives over TLS only."""
    certificate_key: FilePath | None = None
    """PEM file with the certificate's private key. Set both or none."""
    authorities: FilePath | None = None
    """PEM file with the authorities of the peers' certificates. With it a sender needs a certificate, too."""
    return_authorization_file: FilePath | None = None
    """File with the `Authorization` header for STOW-RS, such as `Bearer abc`."""
    max_associations: Annotated[int, Field(ge=1, le=100)] = 8
    """Most associations at a time. Further ones are rejected as transient."""
    max_instance_bytes: Annotated[int, Field(ge=1024)] = 32 * 1024 * 1024
    """Most bytes of one instance. A longer one ends its association."""
    max_spool_bytes: Annotated[int, Field(ge=1024)] = 20 * 1024**3
    """Most bytes in the spool. Above it, instances are refused as out of resources."""
    quiet_seconds: Annotated[float, Field(gt=0, le=86_400)] = 20
    """Seconds without a new slice after which a series counts as complete."""
    max_slices: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Most slices that are scored of a series. Of a longer series, every n-th is."""
    batch_images: Annotated[int, Field(ge=1, le=10_000)] = 16
    """Most slices in one request to the service."""
    batch_bytes: Annotated[int, Field(ge=1024)] = 16 * 1024 * 1024
    """Most bytes in one request to the service."""
    request_timeout: Annotated[float, Field(gt=0, le=600)] = 60
    """Seconds that the node waits for an answer of the service or of the PACS."""
    longest_wait_seconds: Annotated[float, Field(ge=1, le=86_400)] = 60
    """Most seconds between two attempts. The first wait is one second, and each doubles."""
    give_up_seconds: Annotated[float, Field(ge=0)] = 86_400
    """Seconds of failed attempts after which a series becomes a dead letter."""
    keep_seconds: Annotated[float, Field(ge=0)] = 3600
    """Seconds that a returned series stays in the spool, so that late slices join it."""
    drain_seconds: Annotated[float, Field(ge=0, le=600)] = 20
    """Seconds after SIGTERM in which open associations may end."""
    http_host: Annotated[str, Field(min_length=1)] = "0.0.0.0"
    """Address of the probes and the metrics."""
    http_port: Annotated[int, Field(ge=0, le=65535)] = 3003
    """Port of `/livez`, `/readyz` and `/metrics`; 0 is any free one."""

    @field_validator("callers", mode="before")
    @classmethod
    def _parse_callers(cls, value: Any) -> Any:
        return tuple(map(Caller.parse, value.split(","))) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if (self.certificate is None) != (self.certificate_key is None):
            raise ValueError("CERTIFICATE and CERTIFICATE_KEY: expected both or none")
        parts = urlsplit(self.return_to)
        if parts.scheme in ("dicom", "dicoms"):
            if not (parts.username and parts.hostname and parts.port):
                raise ValueError("RETURN_TO: expected dicom://TITLE@HOST:PORT")
        elif parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("RETURN_TO: expected dicom://, dicoms://, http:// or https://")
        return self
