"""How the service runs, from environment variables with the prefix CHESTCT_. What the model is stands in its card.

`python -m serving.settings` writes the table of them into docs/reference/settings.md.
"""

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import DirectoryPath, Field, FilePath, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX: Final = "CHESTCT_"
PAGE: Final = Path(__file__).parents[1] / "docs" / "reference" / "settings.md"

Exposure = Literal["open", "private", "closed"]
"""Where routes answer: on the HTTP port, on the private port instead, or nowhere."""

_SERVICE_LINK: Final = re.compile(r"_SERVICE_(HOST|PORT)|^CHESTCT_PORT")
"""What Kubernetes sets in a pod beside a Service of this name; none of it is a setting."""
_CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


class SettingsError(ValueError):
    """The environment holds a CHESTCT_ variable that is unknown or has no sensible value; the message names it."""


def _usable_cores() -> int:
    """The cores this process may run on, or fewer where a container's CPU limit grants less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS
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

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, json_schema_extra={"default": "the newest real model"}
    )
    """Tag in the BentoML model store; a model of phantoms is served only when it is named here."""
    workers: Annotated[int, Field(ge=1, le=256)] = Field(
        default_factory=_usable_cores, json_schema_extra={"default": "usable cores"}
    )
    """Processes that answer; each holds an engine and a queue, and lends the engine to others while it idles."""
    engine_threads: Annotated[int, Field(ge=1, le=256)] = Field(
        default_factory=_cores_per_worker, json_schema_extra={"default": "usable cores / workers"}
    )
    """CPU threads for one inference, per worker."""
    bfloat16: bool = True
    """Compute in bfloat16 where the model's card allows it and the CPU has instructions for it: in half the time.

    Without, answers are the same on every CPU."""
    decode_threads: Annotated[int, Field(ge=1, le=64)] = Field(
        default_factory=_cores_per_worker, json_schema_extra={"default": "usable cores / workers"}
    )
    """Images decoded at the same time, per worker."""
    largest_batch: Annotated[int, Field(ge=1, le=64)] = 2
    """Images in one inference at most. On a CPU core more gain nothing, and each size costs some 30 MB a worker."""
    queue_size: Annotated[int, Field(ge=1, le=10_000)] = 256
    """Images waiting for the engine at most, per worker; above it a request is rejected with 429.

    Long enough for 200 requests at once, whichever worker they meet, and emptied in a few seconds."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 20 * 1024 * 1024
    """Size of a request's body at most, over every protocol."""
    max_bytes_in_flight: Annotated[int, Field(ge=1024)] = 128 * 1024 * 1024
    """Memory that bodies which are read or answered take together, per worker, 1 to 4.75 times their size.

Above it the request that is slow to send, or sends the most, is rejected with 429."""
    max_images: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Images in one request at most."""
    request_timeout: Annotated[float, Field(gt=0, le=600)] = 30
    """Seconds from a request's first byte to its answer at most; a request may ask for less."""
    drain_seconds: Annotated[float, Field(ge=0, le=600)] = 5
    """Seconds in which requests are still taken after SIGTERM, not ready, until everybody sends them elsewhere."""
    hang_seconds: Annotated[int, Field(ge=2, le=600)] = 15
    """Seconds after which a worker is replaced whose event loop stands still, or whose engine is at one batch."""
    grpc_host: Annotated[str, Field(min_length=1)] = "0.0.0.0"
    """Address that the gRPC server listens on."""
    grpc_port: Annotated[int, Field(ge=0, le=65535)] = 3001
    """Its port; 0: any free one. `make serve` sets it from GRPC_PORT."""
    grpc_certificate: FilePath | None = None
    """PEM file with the gRPC server's certificate chain, for TLS; read at start."""
    grpc_certificate_key: FilePath | None = None
    """PEM file with its private key; both or none."""
    grpc_connection_age: Annotated[float, Field(ge=1, le=86_400)] = 300
    """Seconds after which a gRPC connection ends, its calls answered, so that its client's next one may meet another
    worker or pod."""
    api_keys_file: FilePath | None = None
    """File of API keys; then /v1, /v2, /classify and gRPC answer only who holds one. Read again when it changes."""
    metrics: Exposure = "open"
    """Where /metrics answers: on the HTTP port, on the private port instead, or nowhere."""
    bentoml_routes: Exposure = "open"
    """The same for what BentoML adds for its clients: /classify and /schema.json."""
    samples: DirectoryPath | None = None
    """Folder of pictures (.png, .jpg, .dcm) that the page offers to try, beside its drawn ones."""
    private_host: Annotated[str, Field(min_length=1)] = "0.0.0.0"
    """Address of the private port."""
    private_port: Annotated[int, Field(ge=1, le=65535)] = 3002
    """Listened on only where something is private; beside that it answers the probes. It has no TLS."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.grpc_certificate is None) != (self.grpc_certificate_key is None):
            raise ValueError("GRPC_CERTIFICATE and GRPC_CERTIFICATE_KEY: expected both or none")
        if self.max_bytes_in_flight < self.max_body_bytes:
            raise ValueError(f"MAX_BYTES_IN_FLIGHT: expected MAX_BODY_BYTES, {self.max_body_bytes}, or more")
        return self

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
            problems = (
                f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}, got {e['input']!r}" if e["loc"] else e["msg"]
                for e in error.errors()
            )
            raise SettingsError("; ".join(problems)) from None


def table() -> str:
    """Every setting as a row of a Markdown table, in the order of the model."""
    rows = ["| variable | default | allowed | what |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        words = " ".join((field.description or "").split())
        rows.append(f"| `{PREFIX}{name.upper()}` | {_default(field)} | {_allowed(field)} | {words} |")
    return "\n".join(rows)


def in_page(page: str) -> str:
    """The page with the table of these settings between its markers."""
    begin, end = (f"<!-- {word} of what `python -m serving.settings` writes -->\n" for word in ("begin", "end"))
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}{table()}\n{end}{after}"


def _default(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict):
        return str(extra["default"])
    if field.default is None:
        return "none"
    return str(field.default).lower() if field.annotation is bool else str(field.default)


def _allowed(field: FieldInfo) -> str:
    if field.annotation is bool:
        return "true, false"
    if get_origin(field.annotation) is Literal:
        return ", ".join(get_args(field.annotation))
    bounds = {type(bound): bound for bound in field.metadata}
    low = bounds.get(Ge) or bounds.get(Gt)
    high = bounds.get(Le)
    if low is None:
        return ""
    start = f"above {low.gt}" if isinstance(low, Gt) else f"{low.ge}"
    return f"{start} to {high.le}" if high else f"{start} or more"


def main() -> None:
    """Write the table into the page."""
    PAGE.write_text(in_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
