"""What the bench sends: the same images in each protocol's form."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from open_inference.grpc import protocol

from chestct.card import ModelCard
from chestct.image import decode
from serving.http.v2 import JSON_LENGTH

BOUNDARY: Final = "chestct"
"""Of the parts of a form; no image holds it."""


class Post(NamedTuple):
    """What is sent to one path: bodies in turn, each with its headers."""

    path: str
    bodies: Sequence[tuple[Mapping[str, str], bytes]]

    def write(self, url: str, folder: Path) -> None:
        """Each whole request, as it goes over the wire, in a file of its own: 0, 1, ..."""
        folder.mkdir(parents=True)
        for number, (headers, body) in enumerate(self.bodies):
            lines = {"Host": urlsplit(url).netloc, **headers, "Content-Length": str(len(body))}
            head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
            (folder / str(number)).write_bytes(f"POST {self.path} HTTP/1.1\r\n{head}\r\n".encode() + body)


class Payloads:
    """Requests of one image each, in the images' order."""

    def __init__(self, card: ModelCard, images: Sequence[tuple[str, bytes]]) -> None:
        """`images`: media type and bytes of each."""
        self._name = card.name
        self._images = images
        self._shape = [1, card.input.height, card.input.width, card.input.channels]
        self._pixels = [decode(data, card.input).pixels.tobytes() for _, data in images]

    def raw(self, path: str) -> Post:
        """The file is the body."""
        return Post(path, [({"Content-Type": media_type}, data) for media_type, data in self._images])

    def form(self, path: str) -> Post:
        """The file is the form field `images`."""
        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        bodies = []
        for media_type, data in self._images:
            head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="slice"\r\n'
            head += f"Content-Type: {media_type}\r\n\r\n"
            bodies.append((kind, head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()))
        return Post(path, bodies)

    def binary(self) -> Post:
        """Pixels by OIP's extension for binary tensor data, which the answer has too."""
        bodies = []
        for raw in self._pixels:
            parameters = {"binary_data_size": len(raw)}
            tensor = {"name": "pixels", "datatype": "UINT8", "shape": self._shape, "parameters": parameters}
            head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
            headers = {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(head))}
            bodies.append((headers, head + raw))
        return Post(f"/v2/models/{self._name}/infer", bodies)

    def grpc_pixels(self) -> list[bytes]:
        """ModelInferRequest, serialised, with pixels in the raw form."""
        tensor = {"name": "pixels", "datatype": "UINT8", "shape": self._shape}
        return [self._serialise(tensor, raw_input_contents=[raw]) for raw in self._pixels]

    def grpc_image(self) -> list[bytes]:
        """The same with the file as one BYTES element."""
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1]}
        return [self._serialise({**tensor, "contents": {"bytes_contents": [data]}}) for _, data in self._images]

    def _serialise(self, tensor: Mapping[str, Any], **fields: Any) -> bytes:
        request = protocol.ModelInferRequest(model_name=self._name, inputs=[tensor], **fields)
        return bytes(request.SerializeToString())
