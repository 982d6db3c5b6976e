"""How far an operation is: weighted by step, never decreasing, 100 only at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def percent(weights: Sequence[float], position: int, fraction: float = 0.0) -> float:
    """Return 0.0 to 99.9: the steps before `position` are done, and that step by `fraction` (0 to 1)."""
    total = sum(weights)
    if total <= 0:
        return 0.0
    done = sum(weights[:position])
    if position < len(weights):
        done += weights[position] * min(max(fraction, 0.0), 1.0)
    return round(min(99.9, 100.0 * done / total), 1)


def make_step_decorator(
    report: Callable[[int, int, int], None], *, total_offset: int = 0
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that numbers functions as the steps of one job (operations.md 5.1, section 10).

    Decorating adds 1 to the total (which begins at `total_offset`). After a decorated function has returned normally,
    the count goes up by one and `report(current, total, percent)` is called, percent being
    round(100 * current / total).
    A function that raises does not count. A repeated function counts once: the percentage never passes 100.
    """
    names: list[str] = []
    done: set[int] = set()

    def decorator(function: Callable[P, R]) -> Callable[P, R]:
        number = len(names)
        names.append(function.__name__)

        @wraps(function)
        def numbered(*args: P.args, **kwargs: P.kwargs) -> R:
            result = function(*args, **kwargs)
            done.add(number)
            total = len(names) + total_offset
            report(len(done), total, round(100 * len(done) / total))
            return result

        return numbered

    return decorator
