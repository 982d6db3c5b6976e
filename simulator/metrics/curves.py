"""Figures that move and can be integrated exactly: a steady part with a few waves on it.

A curve is a vector of weights over shared base functions (1, then cosine and sine of each period). Its integral from
0 to t is the dot product with `integrals(t)`: whoever has that vector has every curve's integral for one
multiplication more. A curve made by `wave` is never negative, so its integral never falls.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from operator import mul

Vector = tuple[float, ...]

_PERIODS_S = (37.0, 211.0, 1709.0, 86400.0)
#: How far each wave swings about the steady part; together less than 1.
_SWINGS = (0.3, 0.25, 0.2, 0.15)
_OMEGAS = tuple(math.tau / period for period in _PERIODS_S)
#: Length of the vectors.
WIDTH = 1 + 2 * len(_PERIODS_S)
STEADY: Vector = (1.0, *(0.0 for _ in range(WIDTH - 1)))


def integrals(moment: float) -> list[float]:
    """Return the integrals of the base functions from 0 to a moment."""
    found = [moment]
    for omega in _OMEGAS:
        angle = omega * moment
        found += (math.sin(angle) / omega, (1.0 - math.cos(angle)) / omega)
    return found


def values(moment: float) -> list[float]:
    """Return the base functions at a moment."""
    found = [1.0]
    for omega in _OMEGAS:
        angle = omega * moment
        found += (math.cos(angle), math.sin(angle))
    return found


def _fractions(key: str, count: int) -> list[float]:
    """Return numbers from 0 to 1 that the key alone decides."""
    digest = hashlib.blake2b(key.encode(), digest_size=4 * count).digest()
    return [int.from_bytes(digest[4 * index : 4 * index + 4]) / 0xFFFFFFFF for index in range(count)]


@lru_cache(8192)
def share(key: str) -> float:
    """Return a number from 0 to 1 that the key alone decides."""
    return _fractions(key, 1)[0]


@lru_cache(8192)
def wave(key: str, swing: float = 1.0) -> Vector:
    """Return a curve about 1 whose phases the key decides; it swings by at most 0.9 of `swing`."""
    weights = [1.0]
    for size, phase in zip(_SWINGS, _fractions(key, len(_SWINGS)), strict=True):
        angle = math.tau * phase
        weights += (swing * size * math.cos(angle), -swing * size * math.sin(angle))
    return tuple(weights)


def scaled(curve: Vector, factor: float) -> Vector:
    """Return a multiple of a curve."""
    return tuple(weight * factor for weight in curve)


def total(curves: list[Vector]) -> Vector:
    """Return the sum of curves; that of none is zero."""
    return tuple(map(sum, zip(*curves, strict=True))) if curves else scaled(STEADY, 0.0)


def dot(weights: Vector, vector: list[float]) -> float:
    """Return the sum of products; whichever is longer has its end left out."""
    return sum(map(mul, weights, vector))
