"""A gRPC server whose connections and calls are bounded."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from open_inference.grpc import service

from serving.api_keys import Keys
from serving.inference.classifier import Classifier
from serving.memory_budget import MemoryBudget
from serving.rpc.calls import SERVICE
from serving.rpc.connections import DeliveryTimeouts
from serving.rpc.health import Health
from serving.rpc.inference import Inference
from serving.rpc.interceptor import CallInterceptor
from serving.settings import Settings

_OVERALL: Final = ""
_MOST_CALLS: Final = 1024
"""At the same time. gRPC refuses more with RESOURCE_EXHAUSTED."""
_MOST_CONNECTIONS: Final = 1024
_MOST_CALLS_OF_A_CONNECTION: Final = 256
"""At the same time. Clients wait with more."""
_UNREAD_BYTES: Final = 512 * 1024
"""That a client may send to a call whose message is not read yet: a picture comes in one go, which saves 0.1 ms."""


class RpcServer:
    """A started gRPC server."""

    def __init__(self, server: grpc.aio.Server, classifier: Classifier, health_servicer: Health, port: int) -> None:
        self._server = server
        self._classifier = classifier
        self._health = health_servicer
        self.port = port
        """The port it listens on, also where the settings asked for any free one (0)."""

    async def announce(self) -> None:
        """Tell those who ask about health whether the classifier is ready now: SERVING or NOT_SERVING."""
        self._health.announce((_OVERALL, SERVICE), self._classifier.ready)

    async def stop(self, grace: float) -> None:
        """Say NOT_SERVING, take no new calls, and give the running ones `grace` seconds before they are cancelled.

        Who watches the health is told and let go at once.
        """
        self._health.announce((_OVERALL, SERVICE), ready=False)
        await self._health.end()
        await self._server.stop(grace)


async def start(
    classifier: Classifier,
    settings: Settings,
    keys: Keys | None = None,
    load: AbstractContextManager[None] | None = None,
    memory: MemoryBudget | None = None,
) -> RpcServer:
    """Listen on the settings' gRPC address in this event loop; with `keys`, SERVICE answers only who holds one.

    Each call of SERVICE is answered within `load`, which WorkerLoad counts, and messages are counted in
    `memory`, by default one of the settings' size.
    A classifier that is not ready yet is served as NOT_SERVING; after its warm-up call `announce`. Several processes
    may share the port (SO_REUSEPORT). Raises RuntimeError where the port can't be bound.
    """
    memory = memory or MemoryBudget(settings.max_bytes_in_flight)
    untaken = DeliveryTimeouts()
    server = grpc.aio.server(
        interceptors=[CallInterceptor(classifier, keys, load or nullcontext(), memory, untaken)],
        options=_options(settings),
        maximum_concurrent_rpcs=_MOST_CALLS,
    )
    service.add_GRPCInferenceServiceServicer_to_server(Inference(classifier), server)  # type: ignore[no-untyped-call]
    health_servicer = Health(untaken)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = f"{settings.grpc_host}:{settings.grpc_port}"
    if settings.grpc_certificate and settings.grpc_certificate_key:
        pair = (settings.grpc_certificate_key.read_bytes(), settings.grpc_certificate.read_bytes())
        port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port(address)
    started = RpcServer(server, classifier, health_servicer, port)
    await started.announce()
    await server.start()
    return started


def _options(settings: Settings) -> list[tuple[str, Any]]:
    milliseconds = 1000
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        # Pictures are compressed already, and a message that grows when it is read can't be counted while it comes.
        ("grpc.compression_enabled_algorithms_bitset", 1 << grpc.Compression.NoCompression),
        # By default this grows with the bandwidth, without a bound.
        ("grpc.http2.lookahead_bytes", _UNREAD_BYTES),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_concurrent_streams", _MOST_CALLS_OF_A_CONNECTION),
        ("grpc.max_allowed_incoming_connections", _MOST_CONNECTIONS),
        ("grpc.server_handshake_timeout_ms", 10 * milliseconds),
        # A connection stays with one worker of one pod: it ends, so that its client's next one may meet another.
        ("grpc.max_connection_age_ms", int(settings.grpc_connection_age * milliseconds)),
        ("grpc.max_connection_age_grace_ms", int((settings.request_timeout + 5) * milliseconds)),
        # Whoever is gone is noticed; clients may ask as often, for which gRPC's default would end their connection.
        ("grpc.keepalive_time_ms", 60 * milliseconds),
        ("grpc.keepalive_timeout_ms", 20 * milliseconds),
        ("grpc.http2.min_ping_interval_without_data_ms", 10 * milliseconds),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
