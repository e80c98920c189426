"""API keys and the routes that each gives access to. `python -m serving.api_keys new NAME` makes one.

The file has one key a line: `name:sha256` or `name:sha256:scope,scope`, with the key's SHA-256 in hexadecimal. Empty
lines and lines that start with # are skipped. A key is 256 random bits, so a plain hash is safe.
"""

import argparse
import hmac
import logging
import re
import secrets
import sys
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

SCOPES: Final = ("v1", "v2", "grpc", "classify")
"""Scopes of a key: /v1, /v2, the gRPC port, BentoML's /classify. A key without scopes is for all."""
REALM: Final = 'Bearer realm="chestct"'

_PREFIX: Final = "chestct_"
"""Prefix of each key, by which scanners find leaked keys."""
_LINE: Final = re.compile(r"(?P<name>[\w.@-]{1,64}):(?P<digest>[0-9a-f]{64})(?::(?P<scopes>[a-z0-9,]+))?", re.ASCII)

_log = logging.getLogger(__name__)


class KeysError(ValueError):
    """The file of keys is unusable. The message says where and why, and quotes no line."""


class AccessDenied(Exception):
    """`challenge` is the value of WWW-Authenticate (RFC 6750)."""

    code: ClassVar[str]

    def __init__(self, message: str, challenge: str = REALM) -> None:
        super().__init__(message)
        self.challenge: Final = challenge


class Unauthenticated(AccessDenied):
    """The request has no key, or an unknown one."""

    code = "unauthenticated"


class Forbidden(AccessDenied):
    """The key is known but is for other routes."""

    code = "forbidden"


class Key(NamedTuple):
    name: str
    digest: bytes
    scopes: frozenset[str]


class Keys:
    """The keys in a file, which is read again when it changes. If it is unusable then, the old keys stay valid."""

    def __init__(self, path: Path) -> None:
        """Raises KeysError."""
        self._path = path
        self._seen = self._identity()
        self._keys = parse(path)

    def check(self, authorization: str | None, scope: str) -> str:
        """Check the key in `authorization`, the header or metadata of that name. Returns the key's name.

        Compares all known keys in constant time. Raises Unauthenticated, or Forbidden if the key is not for `scope`.
        """
        self._refresh()
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated("expected a key, as in Authorization: Bearer KEY")
        digest = sha256(key.strip().encode()).digest()
        holders = [known for known in self._keys if hmac.compare_digest(known.digest, digest)]
        if not holders:
            raise Unauthenticated("expected a key that is known here, got another", f'{REALM}, error="invalid_token"')
        for holder in holders:
            if scope in holder.scopes:
                return holder.name
        challenge = f'{REALM}, error="insufficient_scope", scope="{scope}"'
        raise Forbidden(f"expected a key for {scope}, got one for other routes", challenge)

    def _refresh(self) -> None:
        seen = self._identity()
        if seen == self._seen:
            return
        self._seen = seen  # from before the read, so that a change during the read is noticed
        try:
            self._keys = parse(self._path)
        except KeysError as error:
            _log.error("the API keys stay as they were: %s", error)
        else:
            _log.warning("read %d API keys", len(self._keys))  # a warning, because the default level hides less

    def _identity(self) -> tuple[int, ...] | None:
        """A value that changes if the file is written to or replaced; None if there is no file."""
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


def parse(path: Path) -> tuple[Key, ...]:
    """Read the keys of a file. Raises KeysError, also for no keys: a file that is being written starts empty."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise KeysError(f"{path}: {reason}") from None
    keys = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        scopes = frozenset(found["scopes"].split(",")) if found and found["scopes"] else frozenset(SCOPES)
        if not found or not scopes <= set(SCOPES):
            raise KeysError(
                f"{path}, line {number}: expected name:sha256 or name:sha256:scope,scope with scopes of "
                f"{', '.join(SCOPES)}; `python -m serving.api_keys new NAME` makes one"
            )
        keys.append(Key(found["name"], bytes.fromhex(found["digest"]), scopes))
    if not keys:
        raise KeysError(f"{path}: expected at least one key")
    return tuple(keys)


def new(name: str, scopes: tuple[str, ...] = ()) -> tuple[str, str]:
    """Make a new key and its line for the file. Raises KeysError."""
    key = _PREFIX + secrets.token_urlsafe(32)
    line = ":".join(filter(None, (name, sha256(key.encode()).hexdigest(), ",".join(scopes))))
    if not _LINE.fullmatch(line):
        raise KeysError("NAME: expected up to 64 letters, digits and any of . _ @ -")
    return key, line


def main() -> None:
    """Print the key on standard error, once, and its line for the file on standard output."""
    parser = argparse.ArgumentParser(prog="python -m serving.api_keys", description=main.__doc__)
    command = parser.add_subparsers(required=True, metavar="new").add_parser("new", help="make a key")
    command.add_argument("name", help="whose it is")
    command.add_argument("--scope", action="append", choices=SCOPES, default=[], help="what it is for; default: all")
    given = parser.parse_args()
    try:
        key, line = new(given.name, tuple(given.scope))
    except KeysError as error:
        parser.error(str(error))
    print(f"The key, shown this once: {key}", file=sys.stderr)
    print(line)


if __name__ == "__main__":
    main()
