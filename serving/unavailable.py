"""Why the service does not answer a request that is well formed: it has no room, or it is shutting down."""


class Overloaded(RuntimeError):
    """There is no room, in the queue where no reason is given; `retry_after` is the seconds until there may be some."""

    def __init__(self, retry_after: float, reason: str = "too many images are waiting") -> None:
        super().__init__(f"{reason}, try again in {retry_after:.1f} seconds")
        self.retry_after = retry_after


class Closed(RuntimeError):
    """The service is shutting down and takes no more images."""
