"""The gRPC server: the Open Inference Protocol, health and reflection. The only package that imports grpc.

It runs in the event loop that starts it, so HTTP and gRPC requests share one queue.
"""

from serving.rpc.interceptor import SERVICE
from serving.rpc.server import RpcServer, start

__all__ = ["SERVICE", "RpcServer", "start"]
