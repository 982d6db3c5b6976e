"""From rates to bytes: what went over an interface between two moments (operations.md 11.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

Point = tuple[float, float]
"""When a row of the round-robin data ends, and its rate in bytes a second."""


def transferred(points: Sequence[Point], start_s: float, stop_s: float, step_s: float) -> float:
    """Return the bytes between two moments: the area below the line through the points, given oldest first.

    What is not known counts as nothing, and so does the row in which a counter began anew: XAPI shows it as NaN, an
    infinite or a negative rate. Before the first point, for a row's length at most, its rate is assumed; after the last
    one nothing is. Adjoining spans add up to the whole one.
    """
    line = [(moment_s, _known(rate)) for moment_s, rate in points]
    if line and start_s < line[0][0]:
        first_s, rate = line[0]
        line.insert(0, (max(start_s, first_s - step_s), rate))
    return math.fsum(_area(one, other, start_s, stop_s) for one, other in pairwise(line))


def _known(rate: float) -> float:
    return rate if math.isfinite(rate) and rate > 0 else 0.0


def _area(one: Point, other: Point, start_s: float, stop_s: float) -> float:
    """Return the trapezoid between two points, cut to the span."""
    (left_s, left), (right_s, right) = one, other
    begin_s, end_s = max(left_s, start_s), min(right_s, stop_s)
    if end_s <= begin_s:
        return 0.0
    slope = (right - left) / (right_s - left_s)
    return (end_s - begin_s) * (left + slope * ((begin_s + end_s) / 2 - left_s))
