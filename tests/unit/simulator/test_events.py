"""What clients hear of changes: event.from and the older event calls (xapi.md 12.1, xapi-observed.md)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulator.api import event
from simulator.core import events
from simulator.core.events import EventsType
from simulator.model.types import NULL
from tests.support.model_pool import PoolInside
from tests.support.simulator import vm_record


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[PoolInside]:
    with PoolInside(tmp_path) as pool:
        yield pool


@pytest.fixture
def vm_ref(inside: PoolInside) -> str:
    return new_vm(inside)


def new_vm(inside: PoolInside) -> str:
    ref: str = inside.must("VM.create", vm_record(suspend_SR=NULL))
    return ref


def events_from(inside: PoolInside, classes: list[str], token: str, timeout_s: float = 0.0) -> dict[str, Any]:
    """Call event.from; return the answer as JSON clients get it."""
    answer: dict[str, Any] = EventsType().json(inside.must("event.from", classes, token, timeout_s))
    return answer


def now(inside: PoolInside) -> str:
    token: str = events_from(inside, ["nothing"], "")["token"]
    return token


def told(answer: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(one["operation"], one["class"], one["ref"]) for one in answer["events"]]


# -- what is told


def test_the_first_call_adds_everything_of_the_classes(inside: PoolInside, vm_ref: str) -> None:
    answer = events_from(inside, ["vm", "HOST"], "")
    assert {one["operation"] for one in answer["events"]} == {"add"}
    assert {one["class"] for one in answer["events"]} == {"vm", "host"}
    assert ("add", "vm", vm_ref) in told(answer)
    assert len(answer["events"]) == len(inside.rows("VM")) + len(inside.rows("host"))


def test_one_object_can_be_asked_for(inside: PoolInside, vm_ref: str) -> None:
    new_vm(inside)
    assert told(events_from(inside, [f"VM/{vm_ref}"], "")) == [("add", "vm", vm_ref)]


def test_sessions_and_unknown_classes_are_never_heard_of(inside: PoolInside) -> None:
    inside.log_in()
    assert told(events_from(inside, ["session", "klingon", "VM/OpaqueRef:none"], "")) == []
    assert "session" not in {one["class"] for one in events_from(inside, ["*"], "")["events"]}


def test_an_event_is_the_record_as_it_is_now(inside: PoolInside, vm_ref: str) -> None:
    token = now(inside)
    for text in ("a", "b", "c"):
        inside.must("VM.set_name_description", vm_ref, text)
    (one,) = events_from(inside, ["VM"], token)["events"]
    assert (one["operation"], one["timestamp"]) == ("mod", "0.0")
    assert one["snapshot"]["name_description"] == "c"
    assert one["id"].isdigit()


def test_what_came_and_went_between_two_calls_is_not_told(inside: PoolInside) -> None:
    token = now(inside)
    inside.must("VM.destroy", new_vm(inside))
    assert told(events_from(inside, ["VM", "VM_metrics"], token)) == []


def test_additions_come_before_changes_before_deletions(inside: PoolInside, vm_ref: str) -> None:
    gone = new_vm(inside)
    token = now(inside)
    inside.must("VM.destroy", gone)
    inside.must("VM.set_name_label", vm_ref, "changed")
    added = new_vm(inside)
    answer = events_from(inside, ["VM"], token)
    assert told(answer) == [("add", "vm", added), ("mod", "vm", vm_ref), ("del", "vm", gone)]
    assert "snapshot" not in answer["events"][2]


def test_a_write_of_the_same_value_is_a_change(inside: PoolInside, vm_ref: str) -> None:
    inside.must("VM.set_name_label", vm_ref, "same")
    token = now(inside)
    inside.must("VM.set_name_label", vm_ref, "same")
    assert told(events_from(inside, ["VM"], token)) == [("mod", "vm", vm_ref)]


# -- tokens


def test_tokens_compare_as_text_and_an_old_one_tells_all_since(inside: PoolInside, vm_ref: str) -> None:
    tokens = []
    for text in "abcdefghijkl":
        tokens.append(now(inside))
        inside.must("VM.set_name_label", vm_ref, text)
    assert tokens == sorted(tokens)
    assert [len(token) for token in tokens] == [41] * len(tokens)
    for token in tokens:
        assert told(events_from(inside, ["VM"], token)) == [("mod", "vm", vm_ref)]
    assert told(events_from(inside, ["VM"], now(inside))) == []


def test_a_token_of_the_future_tells_nothing_until_its_time_has_come(inside: PoolInside, vm_ref: str) -> None:
    generation = int(now(inside).split(",")[0]) + 2
    token = f"{generation:020d},{0:020d}"
    inside.must("VM.set_name_label", vm_ref, "before")
    assert told(events_from(inside, ["VM"], token)) == []
    inside.must("VM.set_name_label", vm_ref, "then")
    inside.must("VM.set_name_label", vm_ref, "after")
    assert told(events_from(inside, ["VM"], token)) == [("mod", "vm", vm_ref)]


@pytest.mark.parametrize("token", ["garbage", "1", "1,", ",1", "-1,0", "1,2,3", "0x1,0", " 1,1"])
def test_a_token_that_is_none_is_refused(inside: PoolInside, token: str) -> None:
    assert inside.call("event.from", ["VM"], token, 0.0).error == ["EVENT_FROM_TOKEN_PARSE_FAILURE", token]


def test_a_forced_change_is_told_from_its_token_on(inside: PoolInside, vm_ref: str) -> None:
    before = inside.db.row("VM", vm_ref).spec.json(inside.db.row("VM", vm_ref).values)
    token = inside.must("event.inject", "VM", vm_ref)
    (one,) = events_from(inside, ["VM"], token)["events"]
    assert (one["operation"], one["ref"], one["snapshot"]) == ("mod", vm_ref, before)
    assert inside.call("event.inject", "vm", vm_ref).error == ["HANDLE_INVALID", "vm", vm_ref]
    assert inside.call("event.inject", "VM", "OpaqueRef:x").error == ["HANDLE_INVALID", "VM", "OpaqueRef:x"]


# -- counts, and what is forgotten


def test_counts_are_of_all_classes_whatever_was_asked_for(inside: PoolInside, vm_ref: str) -> None:
    assert vm_ref
    counts = events_from(inside, ["nothing"], "")["valid_ref_counts"]
    assert counts["vm"] == len(inside.rows("VM"))
    assert counts["host"] == 2
    assert counts["vmpp"] == 0
    assert all(name == name.lower() for name in counts)


def test_old_deletions_are_forgotten_and_only_the_counts_tell(inside: PoolInside) -> None:
    refs = [inside.must("task.create", str(number), "") for number in range(600)]
    token = events_from(inside, ["task"], "")["token"]
    for ref in refs:
        inside.must("task.set_status", ref, "success")
        inside.must("task.destroy", ref)
    gone = [ref for operation, _, ref in told(events_from(inside, ["task"], token)) if operation == "del"]
    assert len(gone) < len(refs)
    assert gone == refs[-len(gone) :]
    assert 256 <= len(gone) <= 512
    assert events_from(inside, ["task"], token)["valid_ref_counts"]["task"] == len(inside.rows("task"))


# -- waiting


def test_no_time_out_is_no_waiting_and_no_error(inside: PoolInside) -> None:
    for timeout in (0.0, -5.0, float("nan"), 0, "0"):
        assert inside.must("event.from", ["VM"], now(inside), timeout)["events"] == []


def test_a_time_out_ends_with_nothing_but_a_token(inside: PoolInside) -> None:
    begun_s = time.monotonic()
    answer = events_from(inside, ["VM"], now(inside), 0.1)
    assert time.monotonic() - begun_s >= 0.1 + events.EXTRA_WAIT_S
    assert answer["events"] == []
    assert answer["token"] == now(inside)


class Waiting:
    """A client that waits in a thread of its own."""

    def __init__(self, inside: PoolInside, name: str, *params: Any) -> None:
        self._call = (inside, name, params)
        self.answer: Any = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        inside, name, params = self._call
        self.answer = inside.call(name, *params)

    def join(self) -> Any:
        """Return the answer."""
        self._thread.join(30)
        assert not self._thread.is_alive(), "nobody was woken"
        return self.answer


def wait_until_waiting(inside: PoolInside, count: int = 1) -> None:
    deadline = time.monotonic() + 30
    while len(inside.pool.hub._waiters.get("", ())) < count:
        assert time.monotonic() < deadline, "nobody waits"
        time.sleep(0.005)


def test_a_change_wakes_those_whom_it_concerns_and_only_those(inside: PoolInside, vm_ref: str) -> None:
    token, other = now(inside), new_vm(inside)
    token = now(inside)
    waiting = [Waiting(inside, "event.from", [text], token, 1e9) for text in ("VM", f"vm/{vm_ref}", "*")]
    sleeping = Waiting(inside, "event.from", ["SR", f"vm/{other}"], token, 0.5)
    wait_until_waiting(inside, 4)
    inside.must("VM.set_name_label", vm_ref, "x")
    assert [told(EventsType().json(one.join().value)) for one in waiting] == [[("mod", "vm", vm_ref)]] * 3
    assert sleeping.join().value["events"] == []


def test_changes_that_follow_each_other_closely_come_together(
    inside: PoolInside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "BATCHING_S", 1.0)
    refs = [new_vm(inside) for _ in range(3)]
    waiting = Waiting(inside, "event.from", ["VM"], now(inside), 60.0)
    wait_until_waiting(inside)
    for ref in refs:
        inside.must("VM.set_name_label", ref, "x")
    assert {ref for _, _, ref in told(EventsType().json(waiting.join().value))} == set(refs)


@pytest.mark.parametrize("call", ["event.from", "event.next"])
def test_the_end_of_a_session_ends_its_waiting(inside: PoolInside, call: str) -> None:
    inside.must("event.register", ["VM"])
    params = (["VM"], now(inside), 60.0) if call == "event.from" else ()
    waiting, session = Waiting(inside, call, *params), inside.session
    wait_until_waiting(inside)
    inside.must("session.logout")
    assert waiting.join().error == ["SESSION_INVALID", session]


def test_a_restart_keeps_tokens_good_and_adds_everything_again(inside: PoolInside, vm_ref: str) -> None:
    token = now(inside)
    inside.restart()
    assert ("add", "vm", vm_ref) in told(events_from(inside, ["VM"], token))
    assert now(inside) > token


# -- the older calls


def test_event_next_needs_a_registration(inside: PoolInside) -> None:
    assert inside.call("event.next").error == ["SESSION_NOT_REGISTERED", inside.session]
    inside.must("event.register", ["VM", "SR"])
    inside.must("event.unregister", ["VM"])
    inside.must("event.unregister", ["SR"])
    assert inside.call("event.next").error == ["SESSION_NOT_REGISTERED", inside.session]


def test_event_next_numbers_its_events_and_tells_each_once(inside: PoolInside, vm_ref: str) -> None:
    inside.must("event.register", ["VM"])
    assert inside.must("event.get_current_id") == 0
    for number, text in enumerate(("a", "b")):
        inside.must("VM.set_name_label", vm_ref, text)
        (one,) = inside.must("event.next")
        assert (one.generation, one.operation, one.ref) == (number, "mod", vm_ref)
        assert one.stamp.endswith(".")
    assert inside.must("event.get_current_id") == 2


def test_registrations_are_of_one_session(inside: PoolInside, vm_ref: str) -> None:
    inside.must("event.register", ["VM"])
    first = inside.session
    inside.log_in()
    assert inside.call("event.next").error == ["SESSION_NOT_REGISTERED", inside.session]
    inside.session = first
    inside.must("VM.set_name_label", vm_ref, "x")
    assert [one.ref for one in inside.must("event.next")] == [vm_ref]


def test_event_next_says_when_events_were_lost_and_goes_on(inside: PoolInside) -> None:
    inside.must("event.register", ["task"])
    for number in range(600):
        ref = inside.must("task.create", str(number), "")
        inside.must("task.set_status", ref, "success")
        inside.must("task.destroy", ref)
    assert inside.call("event.next").error == ["EVENTS_LOST"]
    ref = inside.must("task.create", "after", "")
    assert [one.ref for one in inside.must("event.next") if one.operation == "add"] == [ref]


def test_who_registered_for_pools_hears_a_heartbeat(inside: PoolInside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event, "HEARTBEAT_S", 0.01)
    inside.must("event.register", ["pool"])
    for _ in range(2):
        (beat,) = inside.must("event.next")
        assert (beat.cls, beat.operation, beat.ref) == ("pool", "mod", inside.pool.pool_row.ref)
