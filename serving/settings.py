"""Settings of the service, from environment variables with the prefix CHESTCT_. The model's facts are in its card.

`python -m docs.tables` writes their table into docs/reference/settings.md.
"""

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import DirectoryPath, Field, FilePath, model_validator

from chestct.arithmetic import Arithmetic
from chestct.cgroups import usable_cores
from chestct.environment_settings import EnvironmentSettings
from chestct.environment_settings import SettingsError as SettingsError

PREFIX: Final = "CHESTCT_"

Exposure = Literal["open", "private", "closed"]
"""Where a route answers: on the HTTP port, on the private port instead, or nowhere."""

MOST_THREADS_ALONE: Final = 4
"""Default of `engine_threads_alone` at most: more threads gain little on small convolutions."""


def _cores_per_worker(settings: dict[str, Any]) -> int:
    workers: int = settings.get("workers", 1)
    return max(1, usable_cores() // workers)


def _threads_of_all_workers(settings: dict[str, Any]) -> int:
    threads: int = settings.get("workers", 1) * settings.get("engine_threads", 1)
    return min(MOST_THREADS_ALONE, threads)


class Settings(EnvironmentSettings, env_prefix=PREFIX):
    """The settings, read once by `Settings.read`. Each field is the variable CHESTCT_<NAME>."""

    kubernetes_sets = re.compile(r"^CHESTCT_(PORT|(\w+_)?SERVICE_(HOST|PORT))")

    model: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, json_schema_extra={"default": "the newest real model"}
    )
    """Tag in the BentoML model store.

    A model that was trained on phantoms, or adapted to a site, is served only if this names it.
    """
    workers: Annotated[int, Field(ge=1, le=256)] = Field(
        default_factory=usable_cores, json_schema_extra={"default": "usable cores"}
    )
    """Worker processes. Each has an engine and a queue, and lends its idle engine to other workers."""
    engine_threads: Annotated[int, Field(ge=1, le=256)] = Field(
        default_factory=_cores_per_worker, json_schema_extra={"default": "usable cores / workers"}
    )
    """CPU threads for one inference, per worker."""
    engine_threads_alone: Annotated[int, Field(ge=1, le=256)] = Field(
        default_factory=_threads_of_all_workers,
        json_schema_extra={"default": f"ENGINE_THREADS of all workers, at most {MOST_THREADS_ALONE}"},
    )
    """CPU threads for an image while no worker has another one. It is then answered sooner.

    With no more than ENGINE_THREADS there is no such engine. It costs some 40 MB a worker."""
    arithmetic: Arithmetic = "int8"
    """The fastest arithmetic to compute in, if the model's card allows it and the CPU has instructions for it.

    Otherwise the next slower one is used. With float32, probabilities are the same on every CPU to five digits."""
    decode_threads: Annotated[int, Field(ge=1, le=64)] = Field(
        default_factory=_cores_per_worker, json_schema_extra={"default": "usable cores / workers"}
    )
    """Images decoded at the same time, per worker."""
    largest_batch: Annotated[int, Field(ge=1, le=64)] = 2
    """Most images in one inference.

    Larger batches gain nothing on a CPU core, and each size costs some 50 MB a worker."""
    queue_size: Annotated[int, Field(ge=1, le=10_000)] = 256
    """Most images that wait for the engine, per worker. Further requests are refused with 429.

    The queue holds 200 requests at once, whichever worker they reach, and empties in a few seconds."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 20 * 1024 * 1024
    """Most bytes of a request's body, over every protocol."""
    max_bytes_in_flight: Annotated[int, Field(ge=1024)] = 128 * 1024 * 1024
    """Most memory for the bodies of all requests in progress, per worker. A body takes 1 to 4.75 times its size.

    Above it, the request that is slow to send or sends the most is refused with 429."""
    max_images: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Most images in one request."""
    request_timeout: Annotated[float, Field(gt=0, le=600)] = 30
    """Most seconds from a request's first byte to its answer. A request may ask for less."""
    drain_seconds: Annotated[float, Field(ge=0, le=600)] = 5
    """Seconds after SIGTERM in which the service reports not ready but still accepts requests."""
    hang_seconds: Annotated[int, Field(ge=2, le=600)] = 15
    """Seconds after which a worker is replaced if its event loop hangs or its engine does not finish a batch."""
    max_worker_deaths: Annotated[int, Field(ge=1, le=100)] = 5
    """Workers that may die in a row in one worker's place, none of them ready for a minute. Then the service ends.

    So the failure shows, and Kubernetes restarts the pod with growing pauses."""
    grpc_host: Annotated[str, Field(min_length=1)] = "0.0.0.0"
    """Address of the gRPC server."""
    grpc_port: Annotated[int, Field(ge=0, le=65535)] = 3001
    """Port of the gRPC server; 0 is any free one. `make serve` sets it from GRPC_PORT."""
    grpc_certificate: FilePath | None = None
    """PEM file with the gRPC server's certificate chain for TLS. It is read at the start."""
    grpc_certificate_key: FilePath | None = None
    """PEM file with the certificate's private key. Set both or none."""
    grpc_connection_age: Annotated[float, Field(ge=1, le=86_400)] = 60
    """Seconds after which a gRPC connection ends, with its calls answered. The next one may reach another pod.

    gRPC varies it by a tenth, so that not all connections end at once."""
    api_keys_file: FilePath | None = None
    """File of API keys. With it, /v1, /v2, /classify and gRPC need a key. It is read again when it changes."""
    metrics: Exposure = "open"
    """Where /metrics answers: on the HTTP port, on the private port instead, or nowhere."""
    bentoml_routes: Exposure = "open"
    """Where BentoML's own routes answer, /classify and /schema.json, in the same way."""
    samples: DirectoryPath | None = None
    """Folder of pictures (.png, .jpg, .dcm) that the page offers beside its drawn ones."""
    inference_log: Annotated[str, Field(min_length=1)] | None = None
    """Folder or bucket (s3://, gs:// or az://) of a log with a row for each prediction, in Parquet files. Off if unset.

    It holds scores and the image's SHA-256, but no pixels, file names or headers."""
    inference_log_seconds: Annotated[float, Field(ge=1, le=3600)] = 60
    """Most seconds that a row of this log waits for its file. A worker that is killed loses these rows."""
    inference_log_rows: Annotated[int, Field(ge=2, le=1_000_000)] = 10_000
    """Most rows of this log in memory, per worker, of some 2 KB each. While more wait, new ones are dropped and
    counted."""
    private_host: Annotated[str, Field(min_length=1)] = "0.0.0.0"
    """Address of the private port."""
    private_port: Annotated[int, Field(ge=1, le=65535)] = 3002
    """The private port. It is open only if something is private. It also answers the probes, and has no TLS."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if (self.grpc_certificate is None) != (self.grpc_certificate_key is None):
            raise ValueError("GRPC_CERTIFICATE and GRPC_CERTIFICATE_KEY: expected both or none")
        if self.max_bytes_in_flight < self.max_body_bytes:
            raise ValueError(f"MAX_BYTES_IN_FLIGHT: expected MAX_BODY_BYTES, {self.max_body_bytes}, or more")
        return self

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes to compile: the powers of two up to the largest, and the largest."""
        powers = (1 << exponent for exponent in range(self.largest_batch.bit_length()))
        return tuple(sorted({*powers, self.largest_batch}))
