"""How the service runs, from environment variables with the prefix CHESTCT_. What the model is stands in its card."""

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX: Final = "CHESTCT_"

_SERVICE_LINK: Final = re.compile(r"_SERVICE_(HOST|PORT)|^CHESTCT_PORT")
"""What Kubernetes sets in a pod beside a Service of this name; none of it is a setting."""
_CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


class SettingsError(ValueError):
    """The environment holds a CHESTCT_ variable that is unknown or has no sensible value; the message names it."""


def _usable_cores() -> int:
    """The cores this process may run on, or fewer where a container's CPU limit grants less."""
    cores = len(os.sched_getaffinity(0))
    if _CPU_QUOTA.is_file():
        quota, period = _CPU_QUOTA.read_text().split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return cores


def _cores_per_worker(settings: dict[str, Any]) -> int:
    workers: int = settings.get("workers", 1)
    return max(1, _usable_cores() // workers)


class Settings(BaseSettings):
    """Read once, at the edge, by `Settings.read`; each field is the variable CHESTCT_<NAME>."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    model: Annotated[str, Field(min_length=1)] | None = None
    """Tag in the BentoML model store; none: the newest model trained on real images."""
    workers: Annotated[int, Field(ge=1, le=256)] = Field(default_factory=_usable_cores)
    """Processes that answer; each holds its own engine and queue."""
    engine_threads: Annotated[int, Field(ge=1, le=256)] = Field(default_factory=_cores_per_worker)
    """CPU threads for one inference, per worker."""
    decode_threads: Annotated[int, Field(ge=1, le=64)] = Field(default_factory=_cores_per_worker)
    """Images decoded at the same time, per worker."""
    largest_batch: Annotated[int, Field(ge=1, le=64)] = 2
    """Images in one inference at most. On a CPU core more gain nothing, and each size costs some 30 MB a worker."""
    queue_size: Annotated[int, Field(ge=1, le=10_000)] = 256
    """Images waiting for the engine at most, per worker; above it a request is told to come back later.

    Long enough for 200 requests at once, whichever worker they meet, and emptied in a few seconds."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 20 * 1024 * 1024
    """Size of a request's body at most, over every protocol."""
    max_images: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Images in one request at most."""
    request_timeout: Annotated[float, Field(gt=0, le=600)] = 30
    """Seconds from a request's first byte to its answer at most; a request may ask for less."""
    drain_seconds: Annotated[float, Field(ge=0, le=600)] = 5
    """Seconds in which requests are still taken after SIGTERM, not ready, until everybody sends them elsewhere."""
    grpc_host: Annotated[str, Field(min_length=1)] = "0.0.0.0"
    grpc_port: Annotated[int, Field(ge=0, le=65535)] = 3001
    """0: any free port."""

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batches to compile ahead: powers of two up to the largest, and the largest."""
        powers = (1 << exponent for exponent in range(self.largest_batch.bit_length()))
        return tuple(sorted({*powers, self.largest_batch}))

    @classmethod
    def read(cls) -> Self:
        """The settings of this process' environment. Raises SettingsError with one line."""
        known = {PREFIX + name.upper() for name in cls.model_fields}
        unknown = sorted(
            name
            for name in os.environ
            if name.upper().startswith(PREFIX) and name.upper() not in known and not _SERVICE_LINK.search(name.upper())
        )
        if unknown:
            raise SettingsError(f"unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        try:
            return cls()
        except ValidationError as error:
            problems = (f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}, got {e['input']!r}" for e in error.errors())
            raise SettingsError("; ".join(problems)) from None
