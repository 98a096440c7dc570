"""What the settings may be. Every check names the value, the rule and the fix, and returns the value it let through."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Option = TypeVar("Option", bound=str)


MOST_SAMPLES = 2**31 - 1
GREATEST_POWER = 1e6
SHOWN = 60  # characters of a value that will not do

# pydantic's kinds of error, in our words.
_RULES = {
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of few digits",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number, with a point for decimals",
    "float_type": "must be a number",
    "finite_number": "must be finite",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "bool_parsing": "must be on or off",
    "bool_type": "must be on or off",
    "string_type": "must be a text",
    "string_too_long": "must be a text of at most {max_length:,} characters",
    "tuple_type": "must be a list with commas",
    "list_type": "must be a list, as [1, 2]",
    "dict_type": "must be a table, values by name",
    "string_pattern_mismatch": "must match {pattern}",
    "too_long": "must be a list of at most {max_length:,}",
    "missing": "has too few parts",
    "json_invalid": "must be JSON, but is not",
    "literal_error": "must be {expected}",
    "model_type": "must be an object, settings by name",
    "extra_forbidden": "is no setting",
}


def rule_of(part: Mapping[str, Any]) -> str:
    """The rule that pydantic saw broken, in our words. Our own rules name the value and the fix as well."""
    if part["type"] == "value_error":
        return str(part["msg"]).removeprefix("Value error, ")
    return _RULES.get(part["type"], "cannot be used").format(**part.get("ctx", {}))


def problem_of(part: Mapping[str, Any]) -> str:
    """What pydantic found: name, value and rule."""
    name = ".".join(map(str, part["loc"]))
    if part["type"] == "value_error" or not name:
        return rule_of(part)
    try:
        value = repr(part["input"])
    except (RecursionError, ValueError):  # lists in lists without end; a number of thousands of digits
        return f"{name}: {rule_of(part)}"
    return f"{name} = {value if len(value) <= SHOWN else f'{value[: SHOWN - 3]}...'}: {rule_of(part)}"


def check_number(name: str, value: float) -> float:
    """A real number; NaN and infinities are left to the rule that follows."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise ValueError(f"{name} = {value!r}: must be a number, not {type(value).__name__}. Pass for example 2.")
    return float(value)


def check_whole(name: str, value: int) -> int:
    """A whole number."""
    try:
        return operator.index(value)
    except TypeError:
        near = f"round({value})" if isinstance(value, numbers.Real) and math.isfinite(value) else "for example 4"
        raise ValueError(f"{name} = {value!r}: must be a whole number. Pass {near}.") from None


def check_sparsity(sparsity: float) -> float:
    """A share of weights removed, in [0, 1)."""
    share = check_number("sparsity", sparsity)
    if not 0 <= share < 1:  # also false for NaN
        raise ValueError(
            f"sparsity = {sparsity}: must lie in [0, 1), the share of the weights that is removed. "
            "For a compression of 16x, pass 1 - 1/16 = 0.9375."
        )
    return share


def check_samples(samples: int) -> int:
    """The number M of masks that are drawn and added up: a whole number from 1 to 2**31 - 1."""
    number = check_whole("samples", samples)
    if number < 1:
        raise ValueError(
            f"samples = {samples}: at least 1 mask must be drawn. Pass samples=1 for the most randomness, "
            "or use magnitude_mask for none."
        )
    if number > MOST_SAMPLES:
        raise ValueError(f"samples = {samples}: at most 2**31 - 1. Pass fewer; use magnitude_mask for no randomness.")
    return number


def check_power(power: float) -> float:
    """The exponent T of the selection weights |w|**T: from 0 to a million."""
    exponent = check_number("power", power)
    if not 0 <= exponent <= GREATEST_POWER:
        raise ValueError(
            f"power = {power}: must be finite and at least 0, lest large weights be the less likely ones, and at most "
            f"{GREATEST_POWER:g}. The paper uses 5; 0 draws uniformly."
        )
    return exponent


def check_reach(reach: float | None) -> float | None:
    """The reach r: only the round(r * keep) largest weights can be drawn. At least 1, or None for every one."""
    if reach is not None and not 1 <= check_number("reach", reach) < math.inf:
        raise ValueError(
            f"reach = {reach}: must be finite and at least 1 (1 draws among exactly the weights that magnitude keeps). "
            "Pass None to let every surviving weight be drawn."
        )
    return None if reach is None else float(reach)


def check_option(name: str, value: str, options: Iterable[Option]) -> Option:
    """One of the named options; an unknown one is refused with the nearest valid one."""
    valid = {str(option): option for option in options}
    if not valid:
        raise ValueError(f"{name} = {value!r}: unknown, and there is none to choose from. Leave it out.")
    if not isinstance(value, str) or value not in valid:
        near = difflib.get_close_matches(str(value), valid, n=1, cutoff=0.0)[0]
        raise ValueError(f"{name} = {value!r}: unknown. Did you mean {near!r}? Valid: {', '.join(valid)}.")
    return valid[value]


def check_positive(name: str, value: float) -> float:
    """A finite number above 0."""
    if not 0 < check_number(name, value) < math.inf:
        raise ValueError(f"{name} = {value}: must be finite and above 0. Pass a positive number.")
    return float(value)


def keep_count(size: int, sparsity: float) -> int:
    """The number k of weights kept out of ``size``: always exactly ``size - round(sparsity * size)``."""
    return size - round(check_sparsity(sparsity) * size)
