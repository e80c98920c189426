import pytest

from serving.inference.window import LUNG, Window, choose_window


def test_a_window_is_given_as_numbers_or_text() -> None:
    assert choose_window({}) == LUNG
    assert choose_window({"window_center": "40", "window_width": 400.5}) == Window(40, 400.5)


@pytest.mark.parametrize(
    "value",
    [
        10**400,
        -(10**400),
        10**5000,
        "9" * 400,
        float("inf"),
        float("nan"),
        "nan",
        "1e999",
        "lung",
        "",
        True,
        b"40",
        [40],
    ],
    ids=lambda value: f"{type(value).__name__} {str(value)[:3] if not isinstance(value, int) else value.bit_length()}",
)
@pytest.mark.parametrize("name", ["window_center", "window_width"])
def test_an_invalid_value_of_any_type_is_refused_with_a_message(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected Hounsfield units from") as caught:
        choose_window({"window_center": 40, "window_width": 400, name: value})
    assert len(str(caught.value)) < 200


def test_one_without_the_other_is_refused() -> None:
    with pytest.raises(ValueError, match="both window_center and window_width"):
        choose_window({"window_center": 40})
