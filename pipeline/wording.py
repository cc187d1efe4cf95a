"""Wording: numbers, shares and ratios as people read them; nothing is rounded to 0 or 1."""

from __future__ import annotations


def number(value: object) -> str:
    """A number as people read it: thousands marked, four digits, small ones as 1.2e-05."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2g}"
    return f"{value:.4g}"


def percent(share: float) -> str:
    """A share in percent; one that is not 0 does not read as 0, nor one below 1 as 100."""
    text = f"{100 * share:.2f} %"
    if text == "0.00 %" and share > 0:
        return "below 0.01 %"
    return "above 99.99 %" if text == "100.00 %" and share < 1 else text


def times(value: float | None) -> str:
    """Error over limit in words that stay true: nothing is rounded to 0."""
    if value is None:
        return "not a number"
    if value == 0:
        return "0"
    if value < 0.001:
        return "below 0.001"
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}"


def error(value: float | None) -> str:
    """An error as a share of an output's scale."""
    return "not a number" if value is None else f"{value:.1e}" if value else "0"


def plural(count: int, what: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
