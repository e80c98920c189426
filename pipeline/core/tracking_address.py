"""The address of the MLflow store, from the environment or `.env`, and how to print it without a password.

A user and a password in a server's address move to MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, so MLflow and
its libraries cannot print them. A database's address keeps its password, and `Address.hide` removes it from messages.
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
    f"{URI} is not a usable address; expected https://host/path with {USERNAME} and {PASSWORD} beside it, or "
    "sqlite:///file"
)


class Address(NamedTuple):
    uri: str
    """For MLflow. A server's has no user and password."""
    shown: str
    """For messages."""
    secrets: tuple[str, ...] = ()

    def hide(self, text: str) -> str:
        """Return `text` without the secrets."""
        for secret in (self.uri, *sorted(self.secrets, key=len, reverse=True)):
            text = text.replace(secret, self.shown if secret == self.uri else "***")
        return text


def read_address(local: str) -> Address:
    """Return the address in the settings, or `local` if there is none. Set the environment variables for MLflow.

    Raises TrackingError if the address is invalid or `.env` cannot be read.
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
        # An @ outside of the host part ends a password with an unquoted slash, and the host is then wrong.
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
        if ":" in (rest or uri).rpartition("@")[0]:  # a server's password, after a missing or misspelt scheme
            raise TrackingError(_NO_ADDRESS)
        return Address(uri, uri)
    place, _, query = rest.partition("?")
    user_info, _, host = place.rpartition("@")
    options = (option.partition("=") for option in query.split("&"))
    found = {user_info.partition(":")[2] or user_info, *(value for key, _, value in options if "pass" in key.lower())}
    secrets = {form for secret in found for form in (secret, unquote(secret)) if form}
    return Address(uri, f"{scheme}://{host}", tuple(secrets))
