"""LitServe with the service's decoder and engine: `python -m benchmarks.peers.litserve_peer PORT`.

As many inference processes as the service has workers, and as many processes for HTTP, which is LitServe's default.
"""

import os
import sys
from typing import Any

import litserve
from fastapi import UploadFile

from benchmarks.peers.network import load


class Peer(litserve.LitAPI):
    """Reads the form field `request`, which LitServe names."""

    def setup(self, device: str) -> None:
        self.network = load()

    def decode_request(self, request: UploadFile) -> bytes:
        return request.file.read()

    def predict(self, x: bytes) -> dict[str, Any]:
        return self.network.answer(x)

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    server = litserve.LitServer(
        Peer(api_path="/predict"),
        accelerator="cpu",
        workers_per_device=int(os.environ.get("PEER_WORKERS", "1")),
        healthcheck_path="/readyz",
        timeout=False,
    )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", generate_client_file=False)
