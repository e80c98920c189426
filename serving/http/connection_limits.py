"""Limits of one HTTP connection, and the errors that name them."""

from http import HTTPStatus
from typing import Final

from serving.http.errors import RequestError, bad_request

HEAD_SECONDS: Final = 10.0
"""Seconds for a request's head, from the start of the connection or the head's first byte."""
HEAD_BYTES: Final = 32 * 1024
"""Largest head in bytes. Trailers, ends of chunks and empty lines have the same limit."""
HEADERS: Final = 128
"""Most header lines. Each takes at least 120 bytes of memory, however short it is."""
PIECES: Final = 10_000
"""Pieces of a body that may be small. Parsing chunks of one byte takes 0.1 s per MB."""
LEAST_PIECE: Final = 32
"""Least mean size in bytes of the pieces of a body in more than PIECES, with the bytes that frame them."""
PIPELINED: Final = 32
"""Most requests on one connection that wait behind the current one. If there are more, only that one is answered."""
LINGER_SECONDS: Final = 30.0
"""Seconds in which the rest of an unread body is dropped."""
LINGER_PAUSE: Final = 5.0
"""Seconds in which at least LEAST_RATE of an unread body must arrive. Also the longest linger while stopping."""
LINGER_BYTES: Final = 1 << 30
"""Most bytes of an unread body that are dropped. Dropping them takes about a second of one core."""
LINGERING: Final = 512
"""Most lingering connections per worker. If there are more, the oldest of them is closed."""
WRITE_PAUSE: Final = 10.0
"""Seconds in which a client must read its answer at LEAST_RATE or more."""
HALF_CLOSE: Final = 0.5
"""Seconds after its request in which a client may close its sending side and still get the answer."""
CONNECTIONS: Final = 2048
"""Most open connections per worker. If there are more, the one that has been idle longest is closed."""

HEAD_TOO_LARGE: Final = RequestError(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "head_too_large",
    f"expected a request's line and headers in at most {HEAD_BYTES} bytes and {HEADERS} lines, got more",
)
PIECES_TOO_SMALL: Final = bad_request(
    "invalid_request",
    f"expected a body in pieces of {LEAST_PIECE} bytes or more, got more than {PIECES} of fewer",
)
NOT_HTTP: Final = bad_request("invalid_request", "expected a request in HTTP/1.1")
