"""Amounts with units: reading "4 h" or "1e18 flops", printing 3.40 EFLOP.

Inside the package every quantity is in its canonical unit (FLOPs at two per multiply-add, seconds,
bytes, joules, tokens, US dollars) and the unit is the last word of its name. Prefixes exist only here.
"""

from __future__ import annotations

import math
import re

from budgetlab.errors import CallerError, unknown_name

SI_PREFIXES = {"Z": 1e21, "E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0}
"""Prefixes in which amounts are printed, largest first."""
_READ = SI_PREFIXES | {"K": 1e3, "B": 1e9}
_TIME = {"s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0,
         "d": 86400.0, "day": 86400.0}  # fmt: skip
_ENERGY = {"j": 1.0, "joule": 1.0, "kj": 1e3, "mj": 1e6, "wh": 3600.0, "kwh": 3.6e6}
_DOLLARS = ("usd", "$", "dollar", "dollars")
_KNOWN = ("flops", "executed flops", "s", "min", "h", "day", "gpu-hours", "J", "kWh", "usd", "tokens")
_EXAMPLES = {"device_seconds": "gpu-hours", "joules": "J", "usd": "usd", "tokens": "tokens"}

BUDGET_UNITS = ("required_flops", "executed_flops", "wall_seconds", "device_seconds", "joules", "usd", "tokens")
"""Units that a budget can have; "4 h" is wall time on all devices, "8 gpu-hours" is device time."""

MATCHES = {
    "required_flops": "required_flops",
    "executed_flops": "executed_flops",
    "device_seconds": "device_seconds",
    "joules": "joules",
    "usd": "usd",
    "equal_tokens": "tokens",
}
"""What can be matched -> the unit of its budgets; `tokens:ARM` is the required FLOPs of that arm's tokens."""

CHARGES = ("none", "inference", "cache", "pretraining")
"""What of a teacher can be charged, beside amortised:K."""

_LARGEST, _LARGEST_COUNT = 1e33, 10**18
"""A billion times what has been computed for one model; whole numbers that every file format keeps exactly."""

_NUMBER = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*$")


def _split(text: str | int | float, asked: str) -> tuple[float, str]:
    match = None if isinstance(text, bool) else _NUMBER.match(str(text))
    if match is None:
        raise CallerError(f"{asked} = {text!r}", "not an amount", 'write a number with a unit, such as "4 h"')
    value = float(match.group(1).replace("_", ""))
    if not math.isfinite(value) or value <= 0:
        raise CallerError(f"{asked} = {text!r}", "an amount must be finite and above zero", "give a positive one")
    return value, match.group(2)


def parse_count(text: str | int | float, asked: str = "count") -> int:
    """Read a whole number of things: 8192, "0.3M", "2.6B", "8_000_000 tokens"."""
    value, suffix = _split(text, asked)
    suffix = suffix.removesuffix("tokens").removesuffix("token").strip()
    if suffix not in _READ:
        raise unknown_name("count prefix", suffix, filter(None, _READ), f"{asked} = {text!r}, prefix")
    count = value * _READ[suffix]
    if count > _LARGEST_COUNT:
        raise CallerError(f"{asked} = {text!r}", f"more than {_LARGEST_COUNT:.0e}", "give a smaller number")
    if abs(count - round(count)) > 1e-6 * count:
        raise CallerError(f"{asked} = {text!r}", "not a whole number", "give a whole one")
    return round(count)


def parse_amount(
    text: str | int | float, default_unit: str = "required_flops", asked: str = "budget"
) -> tuple[float, str]:
    """Read an amount of one thing: "4 h" (wall time), "8 gpu-hours", "1e18 flops", "2 kWh", "10 usd", "4.6B tokens".

    Returns
    -------
    amount, unit
        In the canonical unit, one of `BUDGET_UNITS`; a bare number is in `default_unit`.

    Raises
    ------
    CallerError
        For what is no amount, not above zero or too large, or in no unit that is known.
    """
    value, suffix = _split(text, asked)
    factor, unit = _unit(suffix, f"{asked} = {text!r}, unit") if suffix else (1.0, default_unit)
    value *= factor
    if value > _LARGEST:
        raise CallerError(f"{asked} = {text!r}", f"more than {_LARGEST:.0e} {unit}".rstrip(), "give a smaller amount")
    return value, unit


def _unit(suffix: str, asked: str) -> tuple[float, str]:
    """What one of a unit is in its canonical unit, and the name of that."""
    word = suffix.lower().replace(" ", "-")
    if word in BUDGET_UNITS:
        return 1.0, word
    for prefix in ("gpu-", "device-", "cpu-"):
        rest = word.removeprefix(prefix)
        if rest != word and rest.rstrip("s") in _TIME:
            return _TIME[rest.rstrip("s")], "device_seconds"
    singular = word if word == "s" else word.rstrip("s")
    if singular in _TIME:
        return _TIME[singular], "wall_seconds"
    if singular in _ENERGY:
        return _ENERGY[singular], "joules"
    if word in _DOLLARS:
        return 1.0, "usd"
    flops = re.fullmatch(r"([kKMGTPEZ]?)-?(required-|executed-)?flops?", suffix.replace(" ", "-"), re.IGNORECASE)
    if flops:
        factor = _READ.get(flops.group(1), _READ.get(flops.group(1).upper(), 1.0))
        return factor, "executed_flops" if (flops.group(2) or "").lower() == "executed-" else "required_flops"
    tokens = re.fullmatch(r"([kKMGBT]?)\s*-?tokens?", suffix)
    if tokens:
        return _READ[tokens.group(1)], "tokens"
    raise unknown_name("unit", suffix, _KNOWN, asked)


def parse_budget(text: str | int | float, match: str, *, devices: int = 1, asked: str = "plan.budgets") -> float:
    """Read a budget in the unit of what is matched."""
    if match not in MATCHES and not match.startswith("tokens:"):
        raise unknown_name("match", match, [*MATCHES, "tokens:ARM"], "plan.match")
    wanted = MATCHES.get(match, "tokens")
    amount, unit = parse_amount(text, "", asked)
    if not unit and not wanted.endswith("_flops"):
        named = f"{text:g}" if isinstance(text, float) else text
        wrong = f"a bare number, and match = {match!r} is in {wanted}"
        raise CallerError(f"{asked} = {text!r}", wrong, f'write its unit, such as "{named} {_EXAMPLES[wanted]}"')
    if unit == "wall_seconds":
        amount, unit = amount * devices, "device_seconds"
    if unit not in ("", wanted):
        wrong = f"it is in {unit}, the match {match!r} in {wanted}"
        raise CallerError(f"{asked} = {text!r}", wrong, "change one of them")
    return amount


def parse_charge(charge: str) -> int:
    """Read what of a teacher is charged: the number of students that share its pretraining, 1 unless "amortised:K"."""
    if charge in CHARGES:
        return 1
    found = re.fullmatch(r"amorti[sz]ed:([1-9][0-9]{0,8})", charge)
    if found is None:
        raise unknown_name("charge", charge, [*CHARGES, "amortised:K"], "plan.teacher_charge")
    return int(found.group(1))


def format_quantity(value: float | None, unit: str = "", digits: int = 3) -> str:
    """Print a value with an SI prefix: 3.4e18, "FLOP" -> "3.40 EFLOP"; None -> "n/a"."""
    if value is None or not math.isfinite(value):
        return "n/a"
    rounded = abs(value) / (1 - 0.5 * 10**-digits)  # what is rounded up to 1000 has the next prefix
    prefix, size = next((found for found in SI_PREFIXES.items() if rounded >= found[1]), ("", 1.0))
    number = _significant(value / size, digits)
    if unit in ("tokens", "token", "") and prefix == "G":
        prefix = "B"
    return (f"{number}{prefix} {unit}" if unit in ("tokens", "") else f"{number} {prefix}{unit}").strip()


def _significant(number: float, digits: int) -> str:
    if number == 0:
        return "0"
    if abs(number) < 1e-3:
        return f"{number:.{digits}g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(number))))
    return f"{number:.{decimals}f}"


def format_seconds(seconds: float | None) -> str:
    """Print a duration: 45.2 s, 3 min 05 s, 4.0 h; None -> "n/a"."""
    if seconds is None or not math.isfinite(seconds):
        return "n/a"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def format_amount(amount: float, unit: str) -> str:
    """Print an amount of a budget unit, such as 1e13, "required_flops" -> "10.0 TFLOP"."""
    if unit.endswith("_flops"):
        return format_quantity(amount, "FLOP") + (" executed" if unit.startswith("executed") else "")
    if unit.endswith("_seconds"):
        return format_seconds(amount) + (" device time" if unit.startswith("device") else "")
    if unit == "joules":
        return format_quantity(amount, "J")
    return f"{amount:.2f} USD" if unit == "usd" else format_quantity(amount, "tokens")
