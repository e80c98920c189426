"""The scenarios: the number of users over time, and arguments that are refused."""

import pytest

from load_tests import shapes
from load_tests.verdict import LoadError


def users(scenario: str, most: int = 16, looks: int = 96) -> list[int]:
    """Return the number of users in the middle of each of `looks` equal periods."""
    return [shapes.find(scenario).users_at((look + 0.5) / looks, most) for look in range(looks)]


@pytest.mark.parametrize("scenario", ["steady", "soak"])
def test_the_users_stay_the_same(scenario: str) -> None:
    assert set(users(scenario)) == {16}


def test_a_ramp_climbs_in_equal_steps_to_all_users() -> None:
    assert users("ramp") == [step for step in range(2, 17, 2) for _ in range(12)]


def test_bursts_of_all_users_come_between_quiet_times_of_a_quarter() -> None:
    part = [4] * 32 + [16] * 32 + [4] * 32
    assert users("burst", looks=3 * len(part)) == part * 3


@pytest.mark.parametrize("scenario", shapes.SCENARIOS)
def test_a_few_users_are_never_none(scenario: str) -> None:
    assert min(users(scenario, most=shapes.LEAST_USERS)) == {"steady": 4, "soak": 4}.get(scenario, 1)


def test_the_command_scales_users_and_seconds_each_alone() -> None:
    steady = shapes.find("steady")
    assert steady.size(None, None) == (steady.users, steady.seconds)
    assert steady.size(40, None) == (40, steady.seconds)
    assert steady.size(None, 5) == (steady.users, 5)


def test_only_users_of_ramp_do_not_think() -> None:
    assert [name for name, scenario in shapes.SCENARIOS.items() if not max(scenario.think)] == ["ramp"]


def test_an_unknown_scenario_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LoadError, match="expected a scenario of steady, ramp, burst, soak, got 'spike'"):
        shapes.find("spike")


@pytest.mark.parametrize(("users", "seconds", "words"), [(3, 9, "4 users or more, got 3"), (9, 0, "3 seconds or more")])
def test_too_little_of_a_load_is_refused(users: int, seconds: int, words: str) -> None:
    with pytest.raises(LoadError, match=words):
        shapes.find("steady").size(users, seconds)
