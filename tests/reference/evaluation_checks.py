"""How quantities of evaluation recordings are compared."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# quantity, its largest error, the error that is allowed, whether it is allowed
Check = tuple[str, float, float, bool]
Arrays = Mapping[str, np.ndarray]


def at_most(quantity: str, error: Any, allowed: float) -> Check:
    """Compares an error with the one that is allowed; NaN is not."""
    return quantity, float(error), allowed, bool(error <= allowed)


def close(
    quantity: str, value: Any, recorded: Any, *, atol: float = 0.0, rtol: float = 0.0
) -> Check:
    """Compares |value - recorded| with atol + rtol * |recorded|.

    The error is the largest difference, divided by the allowed one and multiplied by
    `atol` (`rtol` where that is 0); it is infinite where shapes differ or only one of
    the two is NaN.
    """
    value, recorded = (np.asarray(x, np.float64) for x in (value, recorded))
    unit = atol or rtol
    if value.shape != recorded.shape or np.any(np.isnan(value) != np.isnan(recorded)):
        return at_most(quantity, np.inf, unit)
    real = ~np.isnan(recorded)
    difference = np.abs(value - recorded)[real]
    allowed = (atol + rtol * np.abs(recorded))[real]
    if not unit or not difference.size:
        return at_most(quantity, difference.max(initial=0.0), unit)
    # Where nothing is allowed, any difference is infinitely wrong.
    allowed = np.where(allowed > 0, allowed, np.where(difference > 0, 0.0, 1.0))
    with np.errstate(divide="ignore"):
        return at_most(quantity, (difference / allowed).max() * unit, unit)


def same(quantity: str, value: Any, recorded: Any) -> Check:
    """Counts the elements that differ."""
    value, recorded = np.asarray(value), np.asarray(recorded)
    fits = value.shape == recorded.shape
    differing = (value != recorded).sum() if fits else np.inf
    return at_most(f"{quantity} (elements that differ)", differing, 0.0)
