"""The database, queries, events, clock, identifiers, faults: parts that need no server."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from simulator.core.clock import Clock, Scheduler
from simulator.core.database import DELETED_KEPT, DELETED_LIMIT, Database, Row
from simulator.core.events import EventHub, subscription
from simulator.core.failures import Abandoned, Failure
from simulator.core.ids import Ids, mac_address
from simulator.core.log import Log
from simulator.core.query import compile_query
from simulator.faults import Faults
from simulator.model.schema import CLASSES
from simulator.model.types import NULL


@pytest.fixture
def db() -> Database:
    return Database(Log(None))


def add(db: Database, cls: str, name: str, **fields: Any) -> Row:
    with db:
        return db.create(cls, f"OpaqueRef:{name}", {"uuid": f"uuid-{name}"} | fields)


def forever() -> None:
    """Let a session live."""


def changes(hub: EventHub, classes: list[str], token: str, timeout_s: float = 0) -> list[tuple[str, str, str]]:
    batch = hub.wait_from(subscription(classes), token, timeout_s, forever)
    return [(event.cls, event.operation, event.ref) for event in batch["events"]]


def test_relations_are_kept_at_both_ends(db: Database) -> None:
    vm, vdi = add(db, "VM", "vm"), add(db, "VDI", "vdi")
    vbd = add(db, "VBD", "vbd", VM=vm.ref, VDI=vdi.ref)
    assert vm["VBDs"] == [vbd.ref]
    assert vdi["VBDs"] == [vbd.ref]
    other = add(db, "VDI", "other")
    with db:
        db.put(vbd, VDI=other.ref)
    assert (vdi["VBDs"], other["VBDs"]) == ([], [vbd.ref])
    with db:
        db.delete(vbd)
    assert (vm["VBDs"], other["VBDs"]) == ([], [])


def test_an_object_that_is_gone_takes_no_writes(db: Database) -> None:
    vm = add(db, "VM", "vm")
    with db:
        db.delete(vm)
        db.put(vm, name_label="late")
    with pytest.raises(Failure) as caught:
        db.row("VM", vm.ref)
    assert caught.value.details == ["HANDLE_INVALID", "VM", vm.ref]


def test_the_log_brings_everything_back_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "database.log"
    db = Database(Log(path))
    assert not db.load()
    vm = add(db, "VM", "vm", name_label="one")
    gone = add(db, "VM", "gone")
    add(db, "task", "task")
    with db:
        db.put(vm, name_label="two", other_config={"k": "v"})
        db.delete(gone)
        db.note("key", {"a": 1})
    with path.open("a") as torn:
        torn.write('[["set", "VM", "OpaqueRef:vm", {"name_lab')
    again = Database(Log(path))
    assert again.load()
    assert again.row("VM", vm.ref)["name_label"] == "two"
    assert again.row("VM", vm.ref)["other_config"] == {"k": "v"}
    assert again.find("VM", gone.ref) is None
    assert again.rows("task") == []
    assert again.notes == {"key": {"a": 1}}


def test_a_roll_back_loses_what_came_after_the_last_flush_and_nothing_else(db: Database) -> None:
    old = add(db, "VM", "old", name_label="before")
    doomed = add(db, "VDI", "doomed")
    db.flush()
    new = add(db, "VBD", "new", VM=old.ref, VDI=doomed.ref)
    with db:
        db.put(old, name_label="after")
        db.delete(doomed)
        db.roll_back()
    assert db.row("VM", old.ref)["name_label"] == "before"
    assert db.row("VM", old.ref)["VBDs"] == []
    assert db.find("VDI", doomed.ref) is not None
    assert db.find("VBD", new.ref) is None


def test_threads_of_a_killed_toolstack_stop_at_their_next_step(db: Database) -> None:
    outcomes: list[str] = []
    ready, killed = threading.Event(), threading.Event()

    def work() -> None:
        db.adopt_thread()
        ready.set()
        killed.wait(5)
        try:
            with db:
                outcomes.append("went on")
        except Abandoned:
            outcomes.append("abandoned")

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait(5)
    with db:
        db.roll_back()
    killed.set()
    thread.join(5)
    assert outcomes == ["abandoned"]


def test_events_tell_additions_changes_and_deletions_apart(db: Database) -> None:
    hub = EventHub(db)
    vm, vdi = add(db, "VM", "vm"), add(db, "VDI", "vdi")
    token = hub.token()
    with db:
        db.put(vm, name_label="a")
        db.put(vm, name_label="b")
        db.delete(vdi)
    new = add(db, "VDI", "new")
    assert changes(hub, ["*"], token) == [("vdi", "add", new.ref), ("vm", "mod", vm.ref), ("vdi", "del", vdi.ref)]
    assert changes(hub, ["vm"], token) == [("vm", "mod", vm.ref)]
    assert changes(hub, [f"VDI/{vdi.ref}"], token) == [("vdi", "del", vdi.ref)]
    assert changes(hub, ["NoClass"], token) == []


def test_what_was_made_and_removed_between_two_looks_is_not_reported(db: Database) -> None:
    hub = EventHub(db)
    token = hub.token()
    vm = add(db, "VM", "brief")
    with db:
        db.delete(vm)
    assert changes(hub, ["VM"], token) == []


def test_only_so_many_deletions_are_remembered(db: Database) -> None:
    hub = EventHub(db)
    rows = [add(db, "VM", f"vm{number}") for number in range(DELETED_LIMIT + 1)]
    token = hub.token()
    with db:
        for row in rows:
            db.delete(row)
    assert len(changes(hub, ["VM"], token)) == DELETED_KEPT


def test_a_waiter_is_woken_by_a_change_that_concerns_it(db: Database) -> None:
    hub = EventHub(db)
    vm, other = add(db, "VM", "vm"), add(db, "VM", "other")
    token = hub.token()
    seen: list[list[tuple[str, str, str]]] = []
    thread = threading.Thread(target=lambda: seen.append(changes(hub, [f"VM/{vm.ref}"], token, 10)))
    begun = time.monotonic()
    thread.start()
    with db:
        db.put(other, name_label="x")
    time.sleep(0.1)
    assert not seen
    with db:
        db.put(vm, name_label="x")
    thread.join(5)
    assert seen == [[("vm", "mod", vm.ref)]]
    assert time.monotonic() - begun < 8


def test_an_empty_wait_lasts_a_little_longer_than_its_time_out(db: Database) -> None:
    hub = EventHub(db)
    begun = time.monotonic()
    assert changes(hub, ["VM"], hub.token(), 0.01) == []
    lasted = time.monotonic() - begun
    assert lasted > 0.5
    begun = time.monotonic()
    assert changes(hub, ["VM"], hub.token(), 0) == []
    assert time.monotonic() - begun < lasted


def test_a_token_that_is_none_is_refused(db: Database) -> None:
    with pytest.raises(Failure) as caught:
        changes(EventHub(db), ["VM"], "garbage")
    assert caught.value.details == ["EVENT_FROM_TOKEN_PARSE_FAILURE", "garbage"]


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        ("true", True),
        ("false", False),
        ('field "name__label" = "x"', True),
        ('"x" = field "name__label"', True),
        ('field "is_a_template" = "false"', True),
        ('field "memory__static_max" = "5"', True),
        ('field "power_state" = "Halted"', True),
        ('field "tags" = "()"', True),
        ("field \"other_config\" = \"(('a' 'b'))\"", True),
        ('field "name__label" = "x" and field "domid" = "1"', False),
        ('field "name__label" = "y" or field "domid" = "0"', True),
        ("false and false or true", True),
        ("true or false and false", False),
        ("not false and false", True),
        ("(not false) and false", False),
        ("true and not false", True),
        (f'field "resident_on" = "{NULL}"', True),
    ],
)
def test_queries_follow_xapis_grammar(db: Database, expression: str, matches: bool) -> None:  # noqa: FBT001 - a value
    row = add(db, "VM", "vm", name_label="x", memory_static_max=5, other_config={"a": "b"}, power_state="Halted")
    assert compile_query(CLASSES["VM"], expression)(row) is matches


@pytest.mark.parametrize(
    ("expression", "reason"),
    [("field name", "lexing: empty token"), ('field "a" "b"', None), ("", None), ("(true", None), ("and", None)],
)
def test_a_query_that_is_none_is_an_invalid_value(expression: str, reason: str | None) -> None:
    with pytest.raises(Failure) as caught:
        compile_query(CLASSES["VM"], expression)
    assert caught.value.details[:2] == ["INVALID_VALUE", expression]
    if reason:
        assert caught.value.details[2] == f'Failure("{reason}")'


def test_an_unknown_field_fails_with_the_first_row(db: Database) -> None:
    test = compile_query(CLASSES["VM"], 'field "name_label" = "x"')
    with pytest.raises(Failure) as caught:
        test(add(db, "VM", "vm"))
    assert caught.value.details == ["INTERNAL_ERROR", "missing field", "name_label", ""]


@pytest.mark.parametrize(
    ("device", "mac"), [(0, "d2:4f:35:e9:65:ac"), (1, "0a:aa:78:ef:4f:b5"), (2, "e2:e8:68:de:2f:f5")]
)
def test_addresses_are_generated_by_xapis_algorithm(device: int, mac: str) -> None:
    assert mac_address("2d1ee5d4-3f8b-4b8c-9f5e-000000000001", device) == mac


def test_the_same_seed_gives_the_same_names_but_not_in_the_next_life() -> None:
    first = [Ids(1, 1).uuid() for _ in range(2)]
    assert first[0] == first[1]
    assert Ids(1, 2).uuid() != first[0]
    assert Ids(2, 1).uuid() != first[0]


def test_an_advanced_clock_wakes_those_who_wait_on_it() -> None:
    clock = Clock()
    scheduler = Scheduler(clock)
    scheduler.start()
    done = threading.Event()
    scheduler.later(3600, done.set)
    assert not done.wait(0.05)
    clock.advance(3601)
    assert done.wait(2)
    scheduler.stop()


def test_a_wait_ends_when_it_is_told_to() -> None:
    clock, stop = Clock(), threading.Event()

    def tell() -> None:
        stop.set()
        clock.poke()

    timer = threading.Timer(0.05, tell)
    timer.start()
    assert clock.wait(60, stop)
    timer.join()
    assert not clock.wait(0)


def test_a_fault_acts_from_its_nth_match_as_often_as_it_may() -> None:
    faults = Faults(Ids(0, 1))
    fault = faults.add({"match": "VDI.*", "effect": "failure", "error": ["X"], "nth": 2, "count": 2})
    hits = [faults.pick(name) is fault for name in ("VM.start", "VDI.a", "VDI.b", "VDI.c", "VDI.d")]
    assert hits == [False, False, True, True, False]
    assert faults.all()[0]["hits"] == 2
    assert faults.remove(fault.id) == 1
    assert faults.pick("VDI.a") is None


def test_a_fault_with_a_probability_acts_sometimes() -> None:
    faults = Faults(Ids(7, 1))
    faults.add({"match": "*", "effect": "reset", "probability": 0.5})
    hits = sum(faults.pick("VM.start") is not None for _ in range(200))
    assert 60 < hits < 140


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"match": "x"},
        {"match": "x", "effect": "explode"},
        {"match": "x", "effect": "failure"},
        {"match": "x", "effect": "reset", "when": "later"},
        {"match": "x", "effect": "reset", "nht": 1},
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_with_a_sentence(wish: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        Faults(Ids(0, 1)).add(wish)
