"""How quantities of evaluation recordings are compared."""

import json
from typing import Any

import numpy as np

# quantity, its largest error, the error that is allowed
Check = tuple[str, float, float]


def config(arrays: Any) -> dict[str, Any]:
    """The settings inside a recording."""
    return json.loads(str(arrays["config"]))


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
        return quantity, float("inf"), unit
    real = ~np.isnan(recorded)
    difference = np.abs(value - recorded)[real]
    allowed = (atol + rtol * np.abs(recorded))[real]
    if not unit or not difference.size:
        return quantity, float(difference.max(initial=0.0)), unit
    # Where nothing is allowed, any difference is infinitely wrong.
    allowed = np.where(allowed > 0, allowed, np.where(difference > 0, 0.0, 1.0))
    with np.errstate(divide="ignore"):
        return quantity, float((difference / allowed).max() * unit), unit


def same(quantity: str, value: Any, recorded: Any) -> Check:
    """Counts the elements that differ."""
    value, recorded = np.asarray(value), np.asarray(recorded)
    if value.shape != recorded.shape:
        return f"{quantity} (elements that differ)", float("inf"), 0.0
    return f"{quantity} (elements that differ)", float((value != recorded).sum()), 0.0
