"""The round-robin archives: which there are, which one answers a question, and when its rows end (xapi.md 15)."""

from __future__ import annotations

from dataclasses import dataclass

#: Seconds between two samples.
STEP_S = 5
#: A row is unknown when less than this part of its time is known.
XFF = 0.5
#: The one consolidation that XAPI keeps by default.
CONSOLIDATION = "AVERAGE"


@dataclass(frozen=True, slots=True)
class Archive:
    """One archive: rows of equal length, the newest of which ends at a multiple of it."""

    samples: int
    """Samples in one row."""
    rows: int

    @property
    def step_s(self) -> int:
        """The length of a row."""
        return self.samples * STEP_S

    def newest(self, last_update: float) -> int:
        """Return when the newest complete row ends."""
        return int(last_update // self.step_s) * self.step_s

    def oldest(self, last_update: float) -> int:
        """Return when the archive's oldest row begins."""
        return self.newest(last_update) - self.rows * self.step_s

    def ends(self, last_update: float, start: float | None = None) -> list[int]:
        """Return when the rows end that are newer than `start` (None: all of them), newest first."""
        newest, oldest = self.newest(last_update), self.oldest(last_update)
        return [end for end in range(newest, oldest, -self.step_s) if start is None or end > start]


ARCHIVES = (Archive(1, 120), Archive(12, 120), Archive(720, 168), Archive(17280, 366))


def choose(last_update: float, start: float, interval_s: int) -> Archive:
    """Return the finest archive whose rows are at least `interval_s` long and that reaches back to `start`.

    When none reaches so far back it is the coarsest.
    """
    last_sample = last_update // STEP_S * STEP_S
    for archive in ARCHIVES:
        if archive.samples >= interval_s // STEP_S and start > last_sample - archive.rows * archive.step_s:
            return archive
    return ARCHIVES[-1]
