"""A simulated pool inside the test's own process, on a clock that never makes anybody wait, and what must hold in it.

with PoolInside(folder) as pool:
    answer = pool.call("VM.start", vm_ref, False, False)
    pool.check()
"""

from __future__ import annotations

import json
import os
import threading
import xmlrpc.client
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hypothesis import HealthCheck, Phase, settings

from simulator.api import device_rules, vm_rules
from simulator.api.catalogue import dispatch
from simulator.build import Builder
from simulator.core.clock import Clock, Scheduler
from simulator.core.database import Database, Row
from simulator.core.failures import Failure
from simulator.core.log import Log
from simulator.model.schema import CLASSES
from simulator.model.types import NULL, MapOf, Ref, SetOf
from simulator.pool import Pool
from simulator.settings import SimulatorSettings

MIB = 1 << 20
IS_LONG = os.environ.get("VMOPS_HYPOTHESIS_PROFILE") == "long"
_NOTHING = frozenset({"", NULL})
_LIVE = frozenset({"Running", "Paused"})


def profile(examples: int, steps: int) -> settings:
    """Return the settings of a test: the same examples each time, or (VMOPS_HYPOTHESIS_PROFILE=long) ever new ones."""
    if IS_LONG:
        examples, steps = examples * 50, steps * 2
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=not IS_LONG,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


class QuickClock(Clock):
    """Jumps over every wait of the thread that made it; others wait until it gets there."""

    def __init__(self) -> None:
        super().__init__()
        self._owner = threading.current_thread()
        self._now = 1_800_000_000.0

    def now(self) -> float:
        """Return the moment that the waits so far have led to."""
        return self._now + self._offset_s

    def wait(self, seconds: float, stop: threading.Event | None = None) -> bool:
        """Be there."""
        if threading.current_thread() is not self._owner:
            return super().wait(seconds, stop)
        if stop is None or not stop.is_set():
            self.advance(max(0.0, seconds))
        return stop is not None and stop.is_set()


class StillScheduler(Scheduler):
    """Runs its jobs when told to, in the caller's thread."""

    def start(self) -> None:
        """Start no thread."""

    def run_due(self) -> None:
        """Run what is due."""
        while callable(job := self._due()):
            job()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call gave: a value, or the details of its failure."""

    value: Any
    error: list[str]

    @property
    def is_success(self) -> bool:
        """Tell whether the call succeeded."""
        return not self.error


class PoolInside:
    """The pool, a session in it, and a client that follows its events."""

    def __init__(self, folder: Path, **wishes: Any) -> None:
        wishes = {"hosts": 2, "seed": 1, "boot_s": 0.0, "guest_writes_per_s": 0.0, "vm_disk_size": 4 * MIB} | wishes
        self.settings = SimulatorSettings(user="root", password="secret", state_dir=folder, **wishes)
        self.pool = Pool(self.settings)
        self.pool.clock = QuickClock()
        self.scheduler = StillScheduler(self.pool.clock)
        self.pool.scheduler = self.scheduler
        Builder(self.pool).build()
        self.pool.start()
        self.db = self.pool.db
        self.session = self.pool.sessions.open("root", "").ref
        self._mirror: dict[tuple[str, str], dict[str, Any]] = {}
        self._token = ""
        self.settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.pool.stop()

    # -- acting

    def call(self, name: str, *params: Any) -> Answer:
        """Call with the session. The answer must be encodable, a failure one that XAPI has a code for."""
        try:
            kind, value = dispatch(self.pool, name, [self.session, *params])
        except Failure as failure:
            details = failure.details
            assert details[0] != "INTERNAL_ERROR", (name, params, details)
            assert all(isinstance(part, str) for part in details), (name, details)
            return Answer(None, details)
        finally:
            self.settle()
        xmlrpc.client.loads(f"<params><param>{kind.xml(value)}</param></params>")
        json.dumps(kind.json(value))
        return Answer(value, [])

    def must(self, name: str, *params: Any) -> Any:
        """Call; return the value of a call that has to succeed."""
        answer = self.call(name, *params)
        assert answer.is_success, (name, params, answer.error)
        return answer.value

    def settle(self) -> None:
        """Let everything that is due happen."""
        self.scheduler.run_due()

    def collect(self) -> None:
        """Let the collectors finish."""
        for collector in self.pool.collectors:
            collector.hurry()
            assert collector.wait_idle(30), "the collector did not finish"

    def restart(self) -> None:
        """Restart the toolstack; log in again."""
        self.pool.restart_toolstack()
        self._begin_anew()

    def kill(self) -> None:
        """Kill the toolstack; log in again when dom0's leftovers are gone."""
        self.pool.kill_toolstack()
        self.pool.clock.advance(10)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.settle()
        self.session = self.pool.sessions.open("root", "").ref
        self._token, self._mirror = "", {}

    # -- looking

    def rows(self, cls: str) -> list[Row]:
        """Return all objects of a class."""
        return self.db.rows(cls)

    def pick(self, cls: str, number: int) -> str:
        """Return the reference of one of the objects of a class; of nothing when there is none."""
        rows = self.db.rows(cls)
        return rows[number % len(rows)].ref if rows else NULL

    def check(self) -> None:
        """Raise AssertionError with what does not hold."""
        with self.db as db:
            check_references(db)
            check_relations(db)
            check_domains(db)
            check_operations(db)
            check_files(self.pool)
            self.check_events()

    def check_events(self) -> None:
        """Compare what a client knows that only follows events with what is there."""
        batch = self.pool.hub.wait_from(_EVERYTHING, self._token, 0.0, lambda: None)
        assert batch["token"] >= self._token
        self._token = batch["token"]
        for event in batch["events"]:
            key = (event.cls, event.ref)
            if event.operation == "del":
                assert event.row is None
                assert self._mirror.pop(key, None) is not None, f"del of an object never heard of: {key}"
            else:
                assert (key in self._mirror) is (event.operation == "mod"), (event.operation, key)
                self._mirror[key] = event.row.spec.json(event.row.values)
        there = {
            (name.lower(), row.ref): row.spec.json(row.values)
            for name, table in self.db.tables.items()
            if name in _EVERYTHING.classes
            for row in table.rows.values()
        }
        assert self._mirror == there, _difference(self._mirror, there)
        for name, table in self.db.tables.items():
            count = 0 if name == "message" else len(table.rows)  # XAPI keeps messages elsewhere
            assert batch["valid_ref_counts"].get(name.lower(), 0) == count, f"valid_ref_counts of {name}"

    def check_log(self) -> None:
        """Compare what the log would bring back with what is there."""
        image, notes = Log(self.settings.state_dir / "database.log").read()
        now = {
            (name, row.ref): row.values
            for name, table in self.db.tables.items()
            if name not in ("session", "task")
            for row in table.rows.values()
        }
        assert image.keys() == now.keys(), image.keys() ^ now.keys()
        for key, values in json.loads(json.dumps([list(one) for one in now.items()])):
            logged = image[tuple(key)]
            wrong = {field: (logged.get(field), value) for field, value in values.items() if logged.get(field) != value}
            assert not wrong, f"logged and real values of {key} differ: {wrong}"
        assert notes == json.loads(json.dumps(self.db.notes))


def _subscription() -> Any:
    from simulator.core.events import subscription  # noqa: PLC0415 - beside its only use

    return subscription(["*"])


_EVERYTHING = _subscription()


def _difference(left: dict[Any, Any], right: dict[Any, Any]) -> str:
    keys = [key for key in left.keys() | right.keys() if left.get(key) != right.get(key)]
    return "; ".join(f"{key}: events {left.get(key)} but {right.get(key)}" for key in keys[:3])


def references_of(row: Row) -> Iterator[tuple[str, str, str]]:
    """Yield (field, class, reference) of everything that an object refers to."""
    for field in row.spec.fields.values():
        kind, value = field.type, row.values[field.name]
        if isinstance(kind, Ref):
            yield field.name, kind.class_name, value
        elif isinstance(kind, SetOf) and isinstance(kind.item, Ref):
            for ref in value:
                yield field.name, kind.item.class_name, ref
        elif isinstance(kind, MapOf):
            for key, item in value.items():
                for part, ref in ((kind.key, key), (kind.item, item)):
                    if isinstance(part, Ref):
                        yield field.name, part.class_name, ref


def check_references(db: Database) -> None:
    """No reference to nothing, no uuid twice, every index right."""
    for name, table in db.tables.items():
        assert list(table.by_uuid.values()) == [table.by_uuid[row["uuid"]] for row in table.by_uuid.values()]
        assert {row["uuid"] for row in table.rows.values()} == table.by_uuid.keys(), name
        assert table.recent.keys() == table.rows.keys(), name
        for row in table.rows.values():
            for field, cls, ref in references_of(row):
                # XAPI's snapshots keep the name of what they were taken of when that is gone.
                if ref not in _NOTHING and cls in CLASSES and field != "snapshot_of":
                    assert ref in db.tables[cls].rows, f"{name}.{field} of {row.values} dangles: {ref}"


def check_relations(db: Database) -> None:
    """Every relation reads the same from both ends."""
    for name, table in db.tables.items():
        for field, (other, mirror) in table.spec.inverse.items():
            expected: dict[str, list[str]] = {row.ref: [] for row in db.tables[other].rows.values()}
            for row in table.rows.values():
                targets = row[field] if isinstance(row[field], list) else [row[field]]
                for target in targets:
                    if target in expected:
                        expected[target].append(row.ref)
            for row in db.tables[other].rows.values():
                assert sorted(row[mirror]) == sorted(expected[row.ref]), f"{other}.{mirror} against {name}.{field}"


def check_domains(db: Database) -> None:
    """Power states, residence, devices and consoles agree; no disk has two writers."""
    for vm in db.rows("VM"):
        state, is_live = vm["power_state"], vm["power_state"] in _LIVE
        assert (vm["domid"] >= 0) is is_live, (state, vm["domid"])
        assert (vm["resident_on"] in _NOTHING) is not is_live, (state, vm["resident_on"])
        assert vm["scheduled_to_be_resident_on"] in _NOTHING
        assert not vm["consoles"] or is_live, (state, "has consoles")
        if state == "Halted":
            assert vm["suspend_VDI"] in _NOTHING, (state, "has a memory image")
            devices = [*db.linked(vm, "VBDs", "VBD"), *db.linked(vm, "VIFs", "VIF")]
            assert not any(device["currently_attached"] for device in devices), (state, "has attached devices")
    for vdi in db.rows("VDI"):
        users = device_rules.attached_vbds(db, vdi)
        if len(users) > 1 and not vdi["sharable"]:
            assert all(vbd["mode"] == "RO" for vbd in users), "a disk with two writers"


def check_operations(db: Database) -> None:
    """Nothing is marked while nothing is under way; what is said to be allowed is what a fresh look allows."""
    for name in ("VM", "VDI", "VBD", "VIF", "SR"):
        for row in db.rows(name):
            assert row["current_operations"] == {}, (name, row["current_operations"])
            listed = set(row["allowed_operations"])
            _REFRESH[name](db, row)
            now = set(row["allowed_operations"])
            # A copied device lists nothing until somebody looks (transcripts 108 and 110).
            assert now == listed or (not listed and name in ("VBD", "VIF")), (
                f"outdated: missed {now - listed}, kept {listed - now} of {name} {row.values}"
            )


_REFRESH = {
    "VM": vm_rules.refresh,
    "VDI": device_rules.refresh_vdi,
    "VBD": device_rules.refresh_device,
    "VIF": device_rules.refresh_device,
    "SR": device_rules.refresh_sr,
}


def check_files(pool: Pool) -> None:
    """Every file of a repository is a node of its tree, with its parent; every disk's record has its file."""
    for sr in pool.db.rows("SR"):
        if not pool.has_repository(sr):
            continue
        nodes = pool.repository(sr).nodes()
        files = {path.stem for path in pool.sr_path(sr["uuid"]).glob("*.vhd")}
        assert files == nodes.keys(), "files and nodes differ"
        for node in nodes.values():
            assert node.parent is None or nodes[node.parent].hidden, "a disk lies upon a visible one"
        for vdi in pool.db.linked(sr, "VDIs", "VDI"):
            assert vdi["uuid"] in nodes, f"the file of {vdi.values} is gone"
            node = nodes[vdi["uuid"]]
            assert vdi["sm_config"].get("vhd-parent") == node.parent
            assert node.hidden is not vdi["managed"]
