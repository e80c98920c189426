"""The requests of the bench: the same images in the form of each protocol."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from urllib3.filepost import encode_multipart_formdata

from chestct.card import ModelCard
from chestct.engine import Engine
from chestct.image import decode
from chestct.store import StoredModel
from load_tests import payloads, wire
from load_tests.images import pictures

PICTURES: Final = 40
CLOSE_CALLS: Final = 2
"""Close calls among the PICTURES, which int8 and bfloat16 compute twice. Of 40 real slices as many are."""
CANDIDATES: Final = 80
"""Phantoms to choose from. They hold enough of either kind."""


class Post(NamedTuple):
    """POST requests to one path: headers and body of each, sent in turn."""

    path: str
    bodies: Sequence[tuple[Mapping[str, str], bytes]]

    def write(self, url: str, folder: Path) -> None:
        """Write each complete request to a file of its own in `folder`: 0, 1, ..."""
        folder.mkdir(parents=True)
        for number, (headers, body) in enumerate(self.bodies):
            request = wire.post(self.path, body, {"Host": urlsplit(url).netloc, **headers})
            (folder / str(number)).write_bytes(request)


class Payloads:
    """Makes requests of one image each, in the order of the images."""

    def __init__(self, card: ModelCard, images: Sequence[tuple[str, bytes]]) -> None:
        """`images`: media type and bytes of each."""
        self._images = images
        self._spec = card.input
        self._pixels = [decode(data, card.input).pixels.tobytes() for _, data in images]

    def raw(self, path: str) -> Post:
        """Send the file as the body."""
        return Post(path, [({"Content-Type": media_type}, data) for media_type, data in self._images])

    def form(self, path: str, field: str) -> Post:
        """Send the file as a form field."""
        forms = [encode_multipart_formdata([(field, ("slice", data, kind))], "chestct") for kind, data in self._images]
        return Post(path, [({"Content-Type": kind}, body) for body, kind in forms])

    def binary(self) -> Post:
        """Send pixels with the Open Inference Protocol's binary-data extension, also for the answer."""
        requests = [payloads.binary_pixels(pixels, self._spec) for pixels in self._pixels]
        return Post(payloads.INFER, [(headers, body) for body, headers in requests])

    def grpc_pixels(self) -> list[bytes]:
        """Return serialised gRPC requests with pixels as raw contents."""
        return [payloads.pixels_message(pixels, self._spec).SerializeToString() for pixels in self._pixels]

    def grpc_pixels_together(self, count: int) -> list[bytes]:
        """Return serialised gRPC requests with the pixels of `count` images each as raw contents."""
        turns = itertools.cycle(self._pixels)
        several = [b"".join(itertools.islice(turns, count)) for _ in range(len(self._pixels) // count)]
        return [payloads.pixels_message(pixels, self._spec, count=count).SerializeToString() for pixels in several]

    def grpc_image(self) -> list[bytes]:
        """Return serialised gRPC requests with the file as a BYTES element."""
        return [payloads.image_message(data).SerializeToString() for _, data in self._images]


def usual_pictures(model: StoredModel) -> list[tuple[str, bytes]]:
    """Return phantoms with as many close calls for the model as real slices have, in the order of their seeds."""
    card, candidates = model.read_card(), pictures(CANDIDATES)
    pixels = np.stack([decode(data, card.input).pixels for _, data in candidates])
    close = card.close_calls.find(Engine(model.graph).infer(pixels).probabilities)
    others = np.setdiff1d(np.arange(CANDIDATES), close)
    chosen = [*close[:CLOSE_CALLS], *others[: PICTURES - CLOSE_CALLS]]
    return [candidates[index] for index in sorted(chosen)]
