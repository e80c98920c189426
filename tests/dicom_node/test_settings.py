"""The settings of the node name what is wrong in one line."""

from pathlib import Path

import pytest

from dicom_node.settings import Caller, Settings, SettingsError


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.setenv("DICOM_NODE_SPOOL", str(tmp_path))
    monkeypatch.setenv("DICOM_NODE_CALLERS", "CT1@10.1.0.0/16, PACS")
    monkeypatch.setenv("DICOM_NODE_RETURN_TO", "dicom://PACS@pacs.example:104")
    return monkeypatch


def test_settings_are_read(variables: pytest.MonkeyPatch) -> None:
    settings = Settings.read()
    assert [caller.title for caller in settings.callers] == ["CT1", "PACS"]
    assert (settings.ae_title, settings.port, settings.quiet_seconds) == ("CHESTCT", 11112, 20)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CALLERS", "", "CALLERS.*expected TITLE or TITLE@NETWORK"),
        ("CALLERS", "A@10.0.0.1/8", "CALLERS.*host bits"),
        ("RETURN_TO", "pacs:104", "RETURN_TO: expected dicom://"),
        ("RETURN_TO", "dicom://pacs:104", "RETURN_TO: expected dicom://TITLE@HOST:PORT"),
        ("CERTIFICATE", __file__, "expected both or none"),
        ("AE_TITLE", "SEVENTEEN-LETTERS", "AE_TITLE"),
        ("PORTS", "1", "unknown setting DICOM_NODE_PORTS"),
    ],
)
def test_a_wrong_value_is_named(variables: pytest.MonkeyPatch, name: str, value: str, words: str) -> None:
    variables.setenv(f"DICOM_NODE_{name}", value)
    with pytest.raises(SettingsError, match=words) as error:
        Settings.read()
    assert "\n" not in str(error.value)


def test_a_missing_setting_is_named(variables: pytest.MonkeyPatch) -> None:
    variables.delenv("DICOM_NODE_CALLERS")
    with pytest.raises(SettingsError, match="DICOM_NODE_CALLERS: Field required"):
        Settings.read()


def test_variables_that_kubernetes_sets_are_no_settings(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("DICOM_NODE_SERVICE_HOST", "10.0.0.1")
    variables.setenv("DICOM_NODE_PORT_104_TCP", "tcp://10.0.0.1:104")
    Settings.read()


@pytest.mark.parametrize(
    ("caller", "title", "address", "admitted"),
    [
        ("CT1", "CT1", "192.0.2.1", True),
        ("CT1", "CT2", "192.0.2.1", False),
        ("CT1@10.1.0.0/16", "CT1", "10.1.200.3", True),
        ("CT1@10.1.0.0/16", "CT1", "10.2.0.3", False),
        ("*@10.1.0.7", "ANY", "10.1.0.7", True),
        ("*@10.1.0.7", "ANY", "::ffff:10.1.0.7", True),
        ("*", "ANY", "2001:db8::1", True),
        ("CT1@10.1.0.0/16", "CT1", "2001:db8::1", False),
    ],
)
def test_a_caller_is_a_title_from_a_network(caller: str, title: str, address: str, admitted: bool) -> None:
    assert Caller.parse(caller).admits(title, address) is admitted
