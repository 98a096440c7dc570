"""What the settings may be. Every check names the value, the rule and the fix, and returns the value it let through."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from typing import TypeVar

Option = TypeVar("Option", bound=str)


def check_sparsity(sparsity: float) -> float:
    """A share of weights removed, in [0, 1)."""
    if not 0 <= sparsity < 1:  # also false for NaN
        raise ValueError(
            f"sparsity = {sparsity}: must lie in [0, 1), the share of the weights that is removed. "
            "For a compression of 16x, pass 1 - 1/16 = 0.9375."
        )
    return float(sparsity)


def check_samples(samples: int) -> int:
    """The number M of masks that are drawn and added up: a whole number, 1 or more."""
    try:
        number = operator.index(samples)
    except TypeError:
        raise ValueError(f"samples = {samples!r}: must be a whole number. Pass round({samples!r}).") from None
    if number < 1:
        raise ValueError(
            f"samples = {samples}: at least 1 mask must be drawn. Pass samples=1 for the most randomness, "
            "or use magnitude_mask for none."
        )
    return number


def check_power(power: float) -> float:
    """The exponent T of the selection weights |w|**T: finite, 0 or more."""
    if not 0 <= power < math.inf:
        raise ValueError(
            f"power = {power}: must be finite and at least 0, so that large weights are never the less likely ones. "
            "The paper uses 5; 0 draws uniformly."
        )
    return float(power)


def check_reach(reach: float | None) -> float | None:
    """The reach r: only the round(r * keep) largest weights can be drawn. At least 1, or None for every one."""
    if reach is not None and not 1 <= reach < math.inf:
        raise ValueError(
            f"reach = {reach}: must be finite and at least 1 (1 draws among exactly the weights that magnitude keeps). "
            "Pass None to let every surviving weight be drawn."
        )
    return None if reach is None else float(reach)


def check_option(name: str, value: str, options: Iterable[Option]) -> Option:
    """One of the named options; an unknown one is refused with the nearest valid one."""
    valid = {str(option): option for option in options}
    if value not in valid:
        near = difflib.get_close_matches(str(value), valid, n=1, cutoff=0.0)[0]
        raise ValueError(f"{name} = {value!r}: unknown. Did you mean {near!r}? Valid: {', '.join(valid)}.")
    return valid[value]


def check_positive(name: str, value: float) -> float:
    """A finite number above 0."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} = {value}: must be finite and above 0. Pass a positive number.")
    return float(value)


def keep_count(size: int, sparsity: float) -> int:
    """The number k of weights kept out of ``size``: always exactly ``size - round(sparsity * size)``."""
    return size - round(check_sparsity(sparsity) * size)
