"""Settings from the environment: an error names each wrong variable, in one line."""

import re
from typing import Annotated

import pytest
from pydantic import Field, field_validator

from chestct.environment_settings import EnvironmentSettings, SettingsError


class Settings(EnvironmentSettings, env_prefix="TEAPOT_"):
    kubernetes_sets = re.compile(r"^TEAPOT_PORT=tcp:")

    cups: Annotated[int, Field(ge=1)]
    tea: str = "green"

    @field_validator("tea")
    @classmethod
    def _check(cls, tea: str) -> str:
        if tea == "mud":
            raise ValueError(f"expected tea, got {tea!r}")
        return tea


@pytest.fixture(autouse=True)
def cups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAPOT_CUPS", "2")


def test_variables_are_read_and_others_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAPOT_PORT", "tcp://10.0.0.1:80")
    monkeypatch.setenv("KETTLE_CUPS", "9")
    assert Settings.read() == Settings(cups=2, tea="green")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TEAPOT_CUPS", "0", "TEAPOT_CUPS: Input should be greater than or equal to 1, got '0'"),
        ("TEAPOT_TEA", "mud", "TEAPOT_TEA: Value error, expected tea, got 'mud'"),
        ("TEAPOT_PORT", "80", "unknown setting TEAPOT_PORT; known are TEAPOT_CUPS, TEAPOT_TEA"),
        ("teapot_lid", "on", "unknown setting teapot_lid; known are TEAPOT_CUPS, TEAPOT_TEA"),
    ],
)
def test_a_wrong_variable_is_named_with_what_was_expected(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{re.escape(words)}$"):
        Settings.read()


def test_all_wrong_variables_are_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEAPOT_CUPS")
    monkeypatch.setenv("TEAPOT_TEA", "mud")
    with pytest.raises(SettingsError) as caught:
        Settings.read()
    assert str(caught.value) == "TEAPOT_CUPS: Field required; TEAPOT_TEA: Value error, expected tea, got 'mud'"
