"""Settings from environment variables. An unknown, missing or invalid variable is an error in one line."""

import os
import re
from typing import Any, ClassVar, Self

from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

_SAYS_WHAT_CAME = ("missing", "value_error")
"""Kinds of pydantic's errors whose message needs no value behind it."""


class SettingsError(ValueError):
    """A variable is unknown, missing or has an invalid value. The message is one line that names it."""


class EnvironmentSettings(BaseSettings):
    """Base of settings, which are read once by `read`. Each field is a variable: `env_prefix`, then its name."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kubernetes_sets: ClassVar[re.Pattern[str]]
    """Finds variables, as NAME=VALUE, that Kubernetes sets for a Service of this name. They are no settings."""

    @classmethod
    def read(cls) -> Self:
        """Read the settings of this process' environment. Raises SettingsError."""
        prefix = cls.model_config["env_prefix"]
        known = {prefix + name.upper() for name in cls.model_fields}
        present = {name: f"{name.upper()}={value}" for name, value in os.environ.items()}
        unknown = sorted(
            name
            for name, text in present.items()
            if text.startswith(prefix) and name.upper() not in known and not cls.kubernetes_sets.search(text)
        )
        if unknown:
            raise SettingsError(f"unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        try:
            return cls()
        except ValidationError as error:
            raise SettingsError("; ".join(_describe(prefix, problem) for problem in error.errors())) from None


def _describe(prefix: str, problem: Any) -> str:
    if not problem["loc"]:
        return str(problem["msg"])
    got = "" if problem["type"] in _SAYS_WHAT_CAME else f", got {problem['input']!r}"
    return f"{prefix}{str(problem['loc'][0]).upper()}: {problem['msg']}{got}"
