"""What an attempt can end with. No message holds anything of a header."""


class Later(Exception):
    """It did not work now, and may later. `wait` is how many seconds the other side asked for, or None."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class GivenUp(Exception):
    """Trying again does not help until a person changes something."""
