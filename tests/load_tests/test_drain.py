"""The drain test: SIGTERM to a server under load over both protocols."""

import pytest

from load_tests import drain


@pytest.mark.long
@pytest.mark.usefixtures("tiny_store")
def test_a_stopping_server_answers_every_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHESTCT_WORKERS", "2")
    assert drain.main(["--rounds", "1", "--seconds", "1"]) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    _, http, http_lost, _, grpc, grpc_lost, _, _ = lines[2].split()
    assert int(http) > 0
    assert int(grpc) > 0
    assert (http_lost, grpc_lost, lines[-1]) == ("0", "0", "PASS")
