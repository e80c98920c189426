"""A gRPC server whose connections and calls are bounded."""

from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from open_inference.grpc import service

from serving import certificate
from serving.api_keys import Keys
from serving.inference.classifier import Classifier
from serving.memory_budget import MemoryBudget
from serving.rpc.connections import DeliveryTimeouts
from serving.rpc.health import Health
from serving.rpc.inference import InferenceServicer
from serving.rpc.interceptor import SERVICE, CallInterceptor
from serving.settings import Settings
from serving.telemetry import metrics

_OVERALL: Final = ""
_MOST_CALLS: Final = 1024
"""Calls at the same time. gRPC refuses more with RESOURCE_EXHAUSTED."""
_MOST_CONNECTIONS: Final = 1024
_MOST_CALLS_PER_CONNECTION: Final = 256
"""Calls on one connection at the same time. Clients delay further calls."""
_UNREAD_BYTES: Final = 512 * 1024
"""Bytes that a client may send before its message is read. A picture comes in one go, which saves 0.1 ms."""


class RpcServer:
    """A started gRPC server."""

    def __init__(self, server: grpc.aio.Server, classifier: Classifier, health_servicer: Health, port: int) -> None:
        self._server = server
        self._classifier = classifier
        self._health = health_servicer
        self.port = port
        """The port that the server listens on, also if the settings asked for any free one (0)."""

    async def update_health(self) -> None:
        """Update the health service: SERVING if the classifier is ready, otherwise NOT_SERVING."""
        self._health.set_status((_OVERALL, SERVICE), self._classifier.ready)

    async def stop(self, grace: float) -> None:
        """Report NOT_SERVING, end the health watches, refuse new calls, and cancel the running ones after `grace` s."""
        self._health.set_status((_OVERALL, SERVICE), ready=False)
        await self._health.end_watches()
        await self._server.stop(grace)


async def start(classifier: Classifier, keys: Keys | None, memory: MemoryBudget) -> RpcServer:
    """Start a server on the gRPC address of the classifier's settings, in this event loop.

    With `keys`, calls of SERVICE need one of them. `memory` counts the messages. Until the classifier is ready, the
    health is NOT_SERVING: call `update_health` after the warm-up. Several processes may share the port (SO_REUSEPORT).
    Raises RuntimeError if the port can't be bound, and CertificateError.
    """
    settings = classifier.settings
    delivery = DeliveryTimeouts()
    server = grpc.aio.server(
        interceptors=[CallInterceptor(classifier, keys, memory, delivery)],
        options=_options(settings),
        maximum_concurrent_rpcs=_MOST_CALLS,
    )
    service.add_GRPCInferenceServiceServicer_to_server(InferenceServicer(classifier), server)  # type: ignore[no-untyped-call]
    health_servicer = Health(delivery)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = f"{settings.grpc_host}:{settings.grpc_port}"
    if settings.grpc_certificate and settings.grpc_certificate_key:
        end = certificate.read_end(settings.grpc_certificate, settings.grpc_certificate_key)
        metrics.CERTIFICATE_END.labels("grpc").set(end)
        pair = (settings.grpc_certificate_key.read_bytes(), settings.grpc_certificate.read_bytes())
        port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    else:
        port = server.add_insecure_port(address)
    started = RpcServer(server, classifier, health_servicer, port)
    await started.update_health()
    await server.start()
    return started


def _options(settings: Settings) -> list[tuple[str, Any]]:
    milliseconds = 1000
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        # Pictures are compressed already. A compressed message could not be counted while it comes.
        ("grpc.compression_enabled_algorithms_bitset", 1 << grpc.Compression.NoCompression),
        # By default this grows with the bandwidth, without bound.
        ("grpc.http2.lookahead_bytes", _UNREAD_BYTES),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_concurrent_streams", _MOST_CALLS_PER_CONNECTION),
        ("grpc.max_allowed_incoming_connections", _MOST_CONNECTIONS),
        ("grpc.server_handshake_timeout_ms", 10 * milliseconds),
        # A connection stays with one worker of one pod. It ends, so that the client's next one may reach another.
        ("grpc.max_connection_age_ms", int(settings.grpc_connection_age * milliseconds)),
        ("grpc.max_connection_age_grace_ms", int((settings.request_timeout + 5) * milliseconds)),
        # Detect dead clients. Clients may ping as often: by default gRPC would end their connection for it.
        ("grpc.keepalive_time_ms", 60 * milliseconds),
        ("grpc.keepalive_timeout_ms", 20 * milliseconds),
        ("grpc.http2.min_ping_interval_without_data_ms", 10 * milliseconds),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
