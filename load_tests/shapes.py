"""The scenarios of `make load`: the number of users over time, and how long they think.

This module does not import Locust, which replaces the sockets and threads of its process. The locustfile, the command
and the tests can therefore all use it.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from load_tests.verdict import LoadError

STEPS: Final = 8
"""Steps of a ramp."""
BURSTS: Final = 3
LEAST_USERS: Final = 4
"""Each protocol then has a user."""
LEAST_SECONDS: Final = 3
"""Locust updates its statistics once a second."""


class Scenario(NamedTuple):
    words: str
    """Description for the terminal."""
    share: Callable[[float], float]
    """Maps a moment of the run, 0 to less than 1, to the share of the users, 0 to 1."""
    users: int
    """Default for the most users."""
    seconds: int
    """Default length."""
    think: tuple[float, float] = (0.1, 0.5)
    """Least and most seconds between an answer and the same user's next request."""

    def size(self, users: int | None, seconds: int | None) -> tuple[int, int]:
        """Return users and seconds, with the scenario's defaults for None. Raises LoadError if they are too few."""
        users, seconds = self.users if users is None else users, self.seconds if seconds is None else seconds
        for what, number, least in (("users", users, LEAST_USERS), ("seconds", seconds, LEAST_SECONDS)):
            if number < least:
                raise LoadError(f"expected {least} {what} or more, got {number}")
        return users, seconds

    def users_at(self, moment: float, users: int) -> int:
        return max(1, round(self.share(moment) * users))


def _ramp(moment: float) -> float:
    return (int(moment * STEPS) + 1) / STEPS


def _burst(moment: float) -> float:
    """All users in the middle third of each of BURSTS equal parts, a quarter of them otherwise."""
    return 1 if int(moment * BURSTS * 3) % 3 == 1 else 0.25


SCENARIOS: Final = {
    "steady": Scenario("The same users all along, who think between two requests.", lambda _: 1, 16, 60),
    "ramp": Scenario(f"More users in {STEPS} equal steps, none of whom thinks.", _ramp, 32, 80, (0, 0)),
    "burst": Scenario(f"A quarter of the users, who think, and {BURSTS} times all at once.", _burst, 64, 90),
    "soak": Scenario("As steady, for so long that the server's memory has to stay flat.", lambda _: 1, 16, 1800),
}


def find(name: str) -> Scenario:
    """Return the scenario of that name. Raises LoadError, which lists the names."""
    if name not in SCENARIOS:
        raise LoadError(f"expected a scenario of {', '.join(SCENARIOS)}, got {name!r}")
    return SCENARIOS[name]
