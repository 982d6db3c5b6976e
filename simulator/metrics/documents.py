"""Round-robin data on the wire: the XPORT document and the full one, each as XML and as JSON (xapi.md 15).

In JSON every number is a string, as XAPI of 24.10 and later writes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from simulator.metrics.archives import ARCHIVES, CONSOLIDATION, STEP_S, XFF, Archive
from simulator.metrics.rrd import Accumulated, Rrd

_VERSION = "0003"
_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'
_HEARTBEAT = "300.0000"


def number(value: float) -> str:
    """Return a figure as XAPI prints it."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return "0.0" if value == 0 else f"{value:0.15g}"


class Export:
    """What /rrd_updates answers: the rows of several objects side by side."""

    def __init__(self, rrds: Sequence[Rrd], archive: Archive, start: float, last_update: float) -> None:
        self._step = archive.step_s
        self._legend = [
            f"{CONSOLIDATION}:{rrd.kind}:{rrd.uuid}:{source.name}" for rrd in rrds for source in rrd.sources
        ]
        self._ends = archive.ends(last_update, start)
        self._rows = [self._row(rrds, end) for end in self._ends]
        self._newest = archive.newest(last_update)

    def _row(self, rrds: Sequence[Rrd], end: int) -> list[str]:
        return [number(value) for rrd in rrds for value in rrd.row(end - self._step, end)]

    def _meta(self) -> dict[str, str]:
        first = self._ends[-1] if self._ends else self._newest
        last = self._ends[0] if self._ends else self._newest
        counts = {"rows": str(len(self._ends)), "columns": str(len(self._legend))}
        return {"start": str(first), "step": str(self._step), "end": str(last), **counts}

    def xml(self) -> str:
        """Return the XPORT document."""
        meta = "".join(f"<{name}>{value}</{name}>" for name, value in self._meta().items())
        legend = "".join(f"<entry>{entry}</entry>" for entry in self._legend)
        rows = []
        for end, row in zip(self._ends, self._rows, strict=True):
            cells = "".join([f"<v>{value}</v>" for value in row])
            rows.append(f"<row><t>{end}</t>{cells}</row>")
        head = f"{_DECLARATION}<xport><meta>{meta}<legend>{legend}</legend></meta>"
        return f"{head}<data>{''.join(rows)}</data></xport>"

    def json(self) -> str:
        """Return the same for JSON."""
        data = [{"t": str(end), "values": row} for end, row in zip(self._ends, self._rows, strict=True)]
        return json.dumps({"meta": {**self._meta(), "legend": self._legend}, "data": data}, separators=(",", ":"))


def _sources(rrd: Rrd) -> list[dict[str, str]]:
    found = []
    for source, last, gathered in zip(rrd.sources, rrd.last_samples(), rrd.since_sample(), strict=True):
        found.append(
            {
                "name": source.name,
                "type": source.kind,
                "minimal_heartbeat": _HEARTBEAT,
                "min": number(0.0),
                "max": number(source.maximum),
                "last_ds": number(last),
                "value": number(gathered.value),
                "unknown_sec": str(gathered.unknown),
            }
        )
    return found


def _preparation(gathered: Accumulated) -> dict[str, str]:
    return {
        "primary_value": number(0.0),
        "secondary_value": number(0.0),
        "value": number(gathered.value),
        "unknown_datapoints": str(gathered.unknown),
    }


def _database(rrd: Rrd, archive: Archive) -> list[list[str]]:
    return [[number(value) for value in row] for _end, row in reversed(rrd.rows(archive))]


def full_json(rrd: Rrd) -> str:
    """Return the whole of an object's data for JSON."""
    archives = [
        {
            "cf": CONSOLIDATION,
            "pdp_per_row": str(archive.samples),
            "params": {"xff": f"{XFF:.4f}"},
            "cdp_prep": {"ds": [_preparation(one) for one in rrd.partial(archive)]},
            "database": _database(rrd, archive),
        }
        for archive in ARCHIVES
    ]
    head = {"version": _VERSION, "step": str(STEP_S), "lastupdate": f"{rrd.last_update:.3f}"}
    return json.dumps({**head, "ds": _sources(rrd), "rra": archives}, separators=(",", ":"))


def _elements(values: dict[str, str]) -> str:
    return "".join([f"<{name}>{value}</{name}>" for name, value in values.items()])


def full_xml(rrd: Rrd) -> str:
    """Return the whole of an object's data, rows oldest first and without time stamps."""
    parts = [
        f"{_DECLARATION}<rrd><version>{_VERSION}</version><step>{STEP_S}</step>",
        f"<lastupdate>{rrd.last_update:.3f}</lastupdate>",
        *[f"<ds>{_elements(source)}</ds>" for source in _sources(rrd)],
    ]
    for archive in ARCHIVES:
        prepared = "".join([f"<ds>{_elements(_preparation(one))}</ds>" for one in rrd.partial(archive)])
        parts.append(
            f"<rra><cf>{CONSOLIDATION}</cf><pdp_per_row>{archive.samples}</pdp_per_row><params><xff>{XFF:.4f}</xff>"
            f"</params><cdp_prep>{prepared}</cdp_prep><database>"
        )
        for row in _database(rrd, archive):
            cells = "".join([f"<v>{value}</v>" for value in row])
            parts.append(f"<row>{cells}</row>")
        parts.append("</database></rra>")
    parts.append("</rrd>")
    return "".join(parts)
