"""The gRPC edge: the Open Inference Protocol, health and reflection. The only package that knows grpc.

It runs in the event loop of whoever starts it, so HTTP and gRPC feed one queue.
"""

from serving.rpc.calls import SERVICE
from serving.rpc.server import RpcServer, start

__all__ = ["SERVICE", "RpcServer", "start"]
