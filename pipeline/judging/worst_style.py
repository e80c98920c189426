"""The figures of the style that the model bears worst. Stage record and the gate need no more of the style table."""

from collections.abc import Mapping

from chestct.card import Estimate


def worst_style(table: Mapping[str, Mapping[str, Estimate]]) -> dict[str, float]:
    """The figure of the worst style: the least `kept` and `kept_or_unfamiliar`, and the most `accepted_otherwise`."""
    if not table:
        return {}
    return {
        "style_kept": min(row["kept"].value for row in table.values()),
        "style_kept_or_unfamiliar": min(row["kept_or_unfamiliar"].value for row in table.values()),
        "style_accepted_otherwise": max(row["accepted_otherwise"].value for row in table.values()),
    }
