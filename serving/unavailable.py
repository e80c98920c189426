"""Reasons to refuse a valid request: the service has no room for it, or is shutting down."""

from typing import Final


class Overloaded(RuntimeError):
    """There is no room for the request, by default in the queue. `retry_after`: seconds until there may be some."""

    code: Final = "overloaded"

    def __init__(self, retry_after: float, reason: str = "too many images are waiting") -> None:
        super().__init__(f"{reason}, try again in {retry_after:.1f} seconds")
        self.retry_after = retry_after


class Closed(RuntimeError):
    """The service accepts no images: it is starting or shutting down."""

    code: Final = "not_ready"
