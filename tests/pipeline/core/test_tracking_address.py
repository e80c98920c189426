"""Where runs are recorded: the local store, or a server whose password is never shown."""

from pathlib import Path

import pytest

from pipeline.core import tracking_address
from pipeline.core.errors import TrackingError
from pipeline.core.tracking_address import PASSWORD, URI, USERNAME, read_address

NAMES = (URI, USERNAME, PASSWORD)


@pytest.fixture(autouse=True)
def _no_settings(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that the end of the test removes what the code sets
        monkeypatch.delenv(name)


def settings() -> tuple[str | None, ...]:
    return tuple(tracking_address.os.environ.get(name) for name in NAMES)


def test_without_settings_it_is_the_local_store() -> None:
    assert read_address("sqlite:///mlflow.db").uri == "sqlite:///mlflow.db"
    assert settings() == (None, None, None)


@pytest.mark.parametrize(
    ("uri", "bare", "user", "password"),
    [
        ("https://host/a/b.mlflow", "https://host/a/b.mlflow", None, None),
        ("https://ann:secret@host:8443/x", "https://host:8443/x", "ann", "secret"),
        ("http://ann:se%2Fcret%40@host", "http://host", "ann", "se/cret@"),
        ("http://ann:se@cret@host", "http://host", "ann", "se@cret"),
        ("HTTP://token@host", "http://host", "token", None),
        ("http://:secret@[::1]:5000", "http://[::1]:5000", None, "secret"),
        (" http://ann:secret@host\n", "http://host", "ann", "secret"),
        ("sqlite:////home/me@lab/runs.db", "sqlite:////home/me@lab/runs.db", None, None),
        ("runs@lab", "runs@lab", None, None),
    ],
)
def test_user_and_password_of_a_server_move_to_their_variables(
    uri: str, bare: str, user: str | None, password: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URI, uri)
    for _ in range(2):  # the second stage in a process reads the changed variables
        address = read_address("sqlite:///mlflow.db")
        assert (address.uri, address.shown) == (bare, bare)
        assert settings() == (bare, user, password)
        assert address.hide(f"at {bare} as {password}") == f"at {bare} as {'***' if password else None}"


def test_a_variable_overrides_the_address_and_the_environment_overrides_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracking_address.DOTENV.write_text(f"{URI}=https://bob:filed@host\n{USERNAME}=cid\n", encoding="utf-8")
    monkeypatch.setenv(PASSWORD, "set")
    read_address("sqlite:///mlflow.db")
    assert settings() == ("https://host", "cid", "set")


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://ann:sec%40ret@host/db",
        "mysql+pymysql://ann:sec/ret@host/db?ssl=1",
        "db://host/?password=sec%40ret",
    ],
)
def test_a_databases_password_stays_for_the_driver_and_is_hidden(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URI, uri)
    address = read_address("sqlite:///mlflow.db")
    assert address.uri == uri
    passwords = ("sec/ret",) if "sec/ret" in uri else ("sec%40ret", "sec@ret")
    text = address.hide(f"can't open {uri} by {' or '.join(passwords)}")
    assert "sec" not in text + address.shown
    assert "host" in text


@pytest.mark.parametrize(
    "uri",
    [
        "http://",
        "http://ann:MARKER@",
        "http://a:MARKER/x@h",
        "http://a:12#MARKER@h",
        "http://a:MARKER@[h",
        "http://h?p=MARKER",
        "ann:MARKER@host:5000",
        "//ann:MARKER@host",
        "https//ann:MAR/KER@host",
        "postgresql:ann:MARKER@host/db",
        "sqlite://ann:MARKER@host/db",
    ],
)
def test_an_invalid_address_is_refused_and_not_printed(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URI, uri)
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        read_address("sqlite:///mlflow.db")
    assert "MARKER" not in str(caught.value)


def test_an_unreadable_settings_file_is_named() -> None:
    tracking_address.DOTENV.write_bytes(b"MLFLOW_TRACKING_USERNAME=\xff\n")
    with pytest.raises(TrackingError, match=r"\.env can't be read"):
        read_address("sqlite:///mlflow.db")
