"""What one VM or host went through: the little that has to be remembered so that its past figures can be worked out.

A timeline is a short list of segments, each with the sums that had accumulated when it began. So any counter is exact
whatever happened before, and the oldest segments can be dropped (their rows become unknown, nothing else changes).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from operator import sub
from typing import Any

from simulator.metrics.curves import WIDTH, integrals

#: Segments that are remembered of one object.
SEGMENTS_KEPT = 64


@dataclass(frozen=True, slots=True)
class Segment:
    """A time during which nothing changed."""

    began: float
    label: str
    """What the segment is of: a host and domain; another one means that counters begin anew."""
    is_live: bool
    is_moving: bool
    """Whether its own time runs: a paused domain is live and stands still."""
    levels: tuple[float, ...] = ()
    """What its further sums grow by in a second."""
    own_s: float = 0.0
    """Its own time when it began."""
    sums: tuple[float, ...] = ()
    """Its further sums when it began."""

    def own_time(self, moment: float) -> float:
        """Return its own time at a moment."""
        return self.own_s + (moment - self.began if self.is_moving else 0.0)

    def sums_at(self, moment: float) -> tuple[float, ...]:
        """Return its further sums at a moment."""
        passed = moment - self.began
        return tuple(one + level * passed for one, level in zip(self.sums, self.levels, strict=True))

    def is_like(self, other: Segment) -> bool:
        """Tell whether both are of the same kind, whenever they began."""
        mine = (self.label, self.is_live, self.is_moving, self.levels)
        return mine == (other.label, other.is_live, other.is_moving, other.levels)


@dataclass(slots=True)
class Known:
    """What is known of a span of time."""

    known_s: float = 0.0
    own_s: float = 0.0
    vector: list[float] = field(default_factory=list)
    """Growth of the integrals of the base functions, then of the further sums."""


class Timeline:
    """The segments of one object, oldest first."""

    def __init__(self, segments: list[Segment]) -> None:
        self.segments = segments
        self._starts = [segment.began for segment in segments]
        self._integrals: dict[float, list[float]] = {}

    @classmethod
    def read(cls, packed: list[list[Any]]) -> Timeline:
        """Return the timeline that `packed` gave."""
        return cls([_unpack(one) for one in packed])

    def packed(self) -> list[list[Any]]:
        """Return the timeline as JSON takes it."""
        return [
            [one.began, one.label, one.is_live, one.is_moving, list(one.levels), one.own_s, list(one.sums)]
            for one in self.segments
        ]

    def then(self, fresh: Segment) -> Timeline:
        """Return the timeline with one more segment. Counters go on unless its label, or being live, is new."""
        before = [one for one in self.segments if one.began < fresh.began]
        last = before[-1] if before else None
        goes_on = last is not None and last.label == fresh.label and last.is_live and fresh.is_live
        if last is not None and goes_on:
            own_s, sums = last.own_time(fresh.began), last.sums_at(fresh.began)
        else:
            own_s, sums = 0.0, (0.0,) * len(fresh.levels)
        segment = Segment(
            fresh.began, fresh.label, fresh.is_live, fresh.is_moving, fresh.levels, own_s=own_s, sums=sums
        )
        return Timeline([*before, segment][-SEGMENTS_KEPT:])

    @property
    def last(self) -> Segment:
        """The newest segment."""
        return self.segments[-1]

    @property
    def last_alive(self) -> float | None:
        """The moment at which it ceased to be live; None while it is."""
        end = None
        for segment in reversed(self.segments):
            if segment.is_live:
                return end
            end = segment.began
        return end

    def vector(self, segment: Segment, moment: float) -> list[float]:
        """Return the integrals and sums since the segment's counters began."""
        return [*self._integrals_at(segment.own_time(moment)), *segment.sums_at(moment)]

    def counters(self, moment: float) -> tuple[list[float], float]:
        """Return the vector and the own time at a moment; those of the last live segment."""
        index = bisect_right(self._starts, moment) - 1
        end = moment
        while index > 0 and not self.segments[index].is_live:
            end = self._starts[index]
            index -= 1
        if index < 0:
            return integrals(0.0), 0.0
        segment = self.segments[index]
        return self.vector(segment, end), segment.own_time(end)

    def between(self, start: float, end: float) -> Known:
        """Return what is known of the time from `start` to `end`."""
        found = Known()
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self.segments) and self._starts[index] < end:
            segment = self.segments[index]
            index += 1
            low = max(start, segment.began)
            high = min(end, self._starts[index]) if index < len(self.segments) else end
            if not segment.is_live or high <= low:
                continue
            found.known_s += high - low
            found.own_s += segment.own_time(high) - segment.own_time(low)
            first, second = self.vector(segment, low), self.vector(segment, high)
            growth = list(map(sub, second, first))
            if found.vector:
                growth = [one + more for one, more in zip(found.vector, growth, strict=True)]
            found.vector = growth
        return found

    def _integrals_at(self, own_s: float) -> list[float]:
        known = self._integrals.get(own_s)
        if known is None:
            known = self._integrals[own_s] = integrals(own_s)
        return known


def _unpack(packed: list[Any]) -> Segment:
    began, label, is_live, is_moving, levels, own_s, sums = packed
    return Segment(
        began, label, is_live=is_live, is_moving=is_moving, levels=tuple(levels), own_s=own_s, sums=tuple(sums)
    )


#: Where the further sums begin in a vector.
SUMS = WIDTH
