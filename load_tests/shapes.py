"""The scenarios of `make load`: how many users there are from moment to moment, and how long they think.

The locustfile's shape follows the one that was chosen. It is not defined here because Locust replaces the sockets and
threads of whatever process imports it, and the command and the tests want to know the scenarios too.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from load_tests.verdict import LoadError

STEPS: Final = 8
BURSTS: Final = 3
LEAST_USERS: Final = 4
"""So that each protocol has one."""
LEAST_SECONDS: Final = 3
"""Locust looks once a second."""


class Scenario(NamedTuple):
    words: str
    share: Callable[[float], float]
    """Of the users, 0 to 1, at a moment of the time, from 0 to less than 1."""
    users: int
    """At most, where the command names no other number."""
    seconds: int
    """Where the command names no other number."""
    think: tuple[float, float] = (0.1, 0.5)
    """Seconds between an answer and the same user's next request: from, to."""

    def size(self, users: int | None, seconds: int | None) -> tuple[int, int]:
        """Users and seconds, as named or else the scenario's. Raises LoadError where they are too few."""
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
    """The middle third of each of the equal parts is a burst; between them a quarter of the users is left."""
    return 1 if int(moment * BURSTS * 3) % 3 == 1 else 0.25


SCENARIOS: Final = {
    "steady": Scenario("The same users all along, who think between two requests.", lambda _: 1, 16, 60),
    "ramp": Scenario(f"More users in {STEPS} equal steps, none of whom thinks.", _ramp, 32, 80, (0, 0)),
    "burst": Scenario(f"A quarter of the users, who think, and {BURSTS} times all at once.", _burst, 64, 90),
    "soak": Scenario("As steady, for so long that the server's memory has to stay flat.", lambda _: 1, 16, 1800),
}


def find(name: str) -> Scenario:
    """Raises LoadError, which names those that there are."""
    if name not in SCENARIOS:
        raise LoadError(f"expected a scenario of {', '.join(SCENARIOS)}, got {name!r}")
    return SCENARIOS[name]
