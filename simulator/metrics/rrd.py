"""One object's round-robin data: rows, counters and current values from its timeline and its sources."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simulator.metrics.archives import STEP_S, XFF, Archive
from simulator.metrics.curves import WIDTH, dot, values
from simulator.metrics.sources import Source
from simulator.metrics.timeline import Known, Timeline

_NAN = math.nan


@dataclass(frozen=True, slots=True)
class Accumulated:
    """What a row that is not complete yet has gathered of one source."""

    value: float
    unknown: int


class Rrd:
    """The data of one VM, host or repository up to its last sample."""

    def __init__(self, kind: str, uuid: str, timeline: Timeline, sources: list[Source], last_update: float) -> None:
        self.kind = kind
        """`vm`, `host` or `sr`."""
        self.uuid = uuid
        self.sources = sources
        """Those that are recorded."""
        self.last_update = last_update
        self._timeline = timeline

    def row(self, start: float, end: float) -> list[float]:
        """Return every source's mean from `start` to `end`; NaN where less than half of that time is known."""
        known = self._timeline.between(start, end)
        if known.known_s < XFF * (end - start):
            return [_NAN] * len(self.sources)
        middle = (start + end) / 2
        return [self._mean(source, known) if source.since <= middle else _NAN for source in self.sources]

    def _mean(self, source: Source, known: Known) -> float:
        if source.is_counter or len(source.weights) > WIDTH:
            return dot(source.weights, known.vector) / known.known_s
        if known.own_s > 0:
            return dot(source.weights, known.vector) / known.own_s
        _vector, own_s = self._timeline.counters(self.last_update)
        return dot(source.weights, values(own_s))

    def latest(self) -> list[float]:
        """Return every source's mean over the last complete sample."""
        end = self.last_update // STEP_S * STEP_S
        return self.row(end - STEP_S, end)

    def last_samples(self) -> list[float]:
        """Return what was read last: a counter's value since its domain began, a level."""
        vector, _own_s = self._timeline.counters(self.last_update)
        levels = self.row(self.last_update - STEP_S, self.last_update)
        pairs = zip(self.sources, levels, strict=True)
        return [self._counter(source, vector) if source.is_counter else level for source, level in pairs]

    def _counter(self, source: Source, vector: list[float]) -> float:
        reading = max(0.0, dot(source.weights, vector) - source.start)
        return float(math.floor(reading)) if source.units == "B/s" else reading

    def since_sample(self) -> list[Accumulated]:
        """Return what every source has gathered since the last complete sample: rate times seconds."""
        begun = self.last_update // STEP_S * STEP_S
        passed = self.last_update - begun
        return [_accumulated(mean, passed, 0) for mean in (self.row(begun, self.last_update) if passed else self._none)]

    @property
    def _none(self) -> list[float]:
        return [0.0] * len(self.sources)

    def partial(self, archive: Archive) -> list[Accumulated]:
        """Return what the row that is being filled has gathered, as its part of a whole row."""
        begun, sampled = archive.newest(self.last_update), int(self.last_update // STEP_S) * STEP_S
        samples = (sampled - begun) // STEP_S
        means = self.row(begun, sampled) if samples else self._none
        return [_accumulated(mean, samples / archive.samples, samples) for mean in means]

    def rows(self, archive: Archive, start: float | None = None) -> list[tuple[int, list[float]]]:
        """Return (end, values) of an archive's rows newer than `start` (None: all), newest first."""
        step = archive.step_s
        return [(end, self.row(end - step, end)) for end in archive.ends(self.last_update, start)]


def _accumulated(mean: float, factor: float, unknown: int) -> Accumulated:
    return Accumulated(0.0, unknown) if math.isnan(mean) else Accumulated(mean * factor, 0)
