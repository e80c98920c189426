"""Where MLflow records runs, as the environment or `.env` says, and how to speak of it without a password.

A user and password that stand in a server's address move to MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, so
MLflow and its libraries never see them in what they may print. A database's address needs its password; it is taken out
of every message.
"""

import os
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from dotenv import dotenv_values

from pipeline.core.errors import TrackingError

DOTENV: Final = Path(".env")
URI: Final = "MLFLOW_TRACKING_URI"
USERNAME: Final = "MLFLOW_TRACKING_USERNAME"
PASSWORD: Final = "MLFLOW_TRACKING_PASSWORD"

_NO_ADDRESS: Final = (
    f"{URI} is no address that can be used; expected https://host/path with {USERNAME} and {PASSWORD} beside it, or "
    "sqlite:///file"
)


class Address(NamedTuple):
    uri: str
    """For MLflow; of a server without user and password."""
    shown: str
    """For people."""
    secrets: tuple[str, ...] = ()
    """What `hide` takes out."""

    def hide(self, text: str) -> str:
        for secret in (self.uri, *sorted(self.secrets, key=len, reverse=True)):
            text = text.replace(secret, self.shown if secret == self.uri else "***")
        return text


def read_address(local: str) -> Address:
    """The address that the settings name, else `local`; sets the variables from which MLflow takes it.

    Raises TrackingError where it is none, or `.env` can't be read.
    """
    try:
        saved = dotenv_values(DOTENV)
    except (OSError, UnicodeDecodeError) as error:
        raise TrackingError(f"{DOTENV} can't be read: {error}") from None
    for name in (URI, USERNAME, PASSWORD):
        if name not in os.environ and (value := saved.get(name)):
            os.environ[name] = value
    uri = os.environ.get(URI, "").strip()
    if not uri:
        return Address(local, local)
    address = _server(uri) if uri.lower().startswith(("http:", "https:")) else _database(uri)
    os.environ[URI] = address.uri
    return address


def _server(uri: str) -> Address:
    try:
        parts = urlsplit(uri)
        user_info, _, host = parts.netloc.rpartition("@")
        bare = parts._replace(netloc=host).geturl()
        # An @ elsewhere is the end of a password that holds a slash or the like, and the name before it no host.
        usable = bool(parts.hostname) and (parts.port or 1) and "@" not in bare and not (parts.query or parts.fragment)
    except ValueError:
        usable = False
    if not usable:
        raise TrackingError(_NO_ADDRESS) from None
    user, _, password = map(unquote, user_info.partition(":"))
    for name, value in ((USERNAME, user), (PASSWORD, password)):
        if value and not os.environ.get(name):
            os.environ[name] = value
    return Address(bare, bare, tuple(filter(None, (os.environ.get(PASSWORD),))))


def _database(uri: str) -> Address:
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme.partition("+")[0].lower() in ("sqlite", "file"):
        if ":" in (rest or uri).rpartition("@")[0]:  # a password, of a server whose scheme is missing or misspelt
            raise TrackingError(_NO_ADDRESS)
        return Address(uri, uri)
    place, _, query = rest.partition("?")
    user_info, _, host = place.rpartition("@")
    options = (option.partition("=") for option in query.split("&"))
    found = {user_info.partition(":")[2] or user_info, *(value for key, _, value in options if "pass" in key.lower())}
    secrets = {form for secret in found for form in (secret, unquote(secret)) if form}
    return Address(uri, f"{scheme}://{host}", tuple(secrets))
