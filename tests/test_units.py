"""Amounts and counts are read with their unit and printed back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budgetlab.errors import CallerError
from budgetlab.units import format_amount, format_quantity, format_seconds, parse_amount, parse_count


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("4 h", 14400.0, "wall_seconds"),
        ("8 gpu-hours", 28800.0, "device_seconds"),
        ("1e18 flops", 1e18, "required_flops"),
        ("3.4 EFLOP", 3.4e18, "required_flops"),
        ("5e12 executed flops", 5e12, "executed_flops"),
        ("2 kWh", 7.2e6, "joules"),
        ("10 usd", 10.0, "usd"),
        ("4.6B tokens", 4.6e9, "tokens"),
        ("90 s", 90.0, "wall_seconds"),
        (1e13, 1e13, "required_flops"),
    ],
)
def test_amounts(text: str | float, amount: float, unit: str) -> None:
    found, found_unit = parse_amount(text)
    assert found == pytest.approx(amount) and found_unit == unit


@pytest.mark.parametrize("text", ["", "four hours", "-1 h", "0", "nan", "inf", "4 parsecs", True])
def test_bad_amounts_say_what_to_do(text: object) -> None:
    with pytest.raises(CallerError, match="budget = "):
        parse_amount(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "count"), [("0.3M", 300_000), (8192, 8192), ("2.6B tokens", 2_600_000_000)])
def test_counts(text: str | int, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["2.5", "-3", "8Q", "x"])
def test_bad_counts(text: str) -> None:
    with pytest.raises(CallerError):
        parse_count(text)


@given(st.floats(min_value=1e-3, max_value=1e24))
def test_printed_quantities_are_within_half_a_digit(value: float) -> None:
    number, prefix = format_quantity(value, "FLOP").removesuffix("FLOP").split(" ")
    scale = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}[prefix]
    assert float(number) * scale == pytest.approx(value, rel=0.006)


def test_unknown_prints_na() -> None:
    assert format_quantity(None, "FLOP") == format_seconds(None) == "n/a"
    assert format_amount(3.6e12, "required_flops") == "3.60 TFLOP"
