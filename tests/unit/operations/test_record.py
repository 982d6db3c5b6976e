"""One operation as the journal keeps it."""

from __future__ import annotations

import json

from worker.operations.record import Direction, Record, parse
from worker.operations.states import State


def stored(fields: dict[str, object]) -> dict[bytes, bytes]:
    """Return fields as Redis gives them back."""
    return {
        key.encode(): (value if isinstance(value, str) else json.dumps(value)).encode() for key, value in fields.items()
    }


RECORD = Record(id="1", name="toy", pool="lab", request={"a": [1, "ü"]}, label="web01", position=0, step="first")


def test_a_new_record_is_read_back_as_it_was_written() -> None:
    assert parse(stored(RECORD.initial_fields())) == RECORD


def test_everything_that_is_added_later_is_read() -> None:
    later = {
        "state": "waiting",
        "direction": "undo",
        "progress": 41.7,
        "d:disks": [{"ref": "x"}],
        "d:name:with:colons": None,
        "hold:vm:5f3c": 1,
        "hold:sr:9a": 1,
        "attempts:first": 3,
        "times:first": [1, 2],
        "error": {"step": "first", "code": "C", "message": "m"},
        "undo_errors": [{"step": "undo_first", "position": "0"}],
        "wait": {"reason": "r"},
        "failures": 2,
        "cancel": 1,
        "resume": 1,
        "token": "t",
        "lease_until": 1763814123456,
    }
    record = parse(stored({**RECORD.initial_fields(), **later}))
    assert (record.state, record.direction, record.progress) == (State.WAITING, Direction.UNDO, 41.7)
    assert record.data == {"disks": [{"ref": "x"}], "name:with:colons": None}
    assert record.holds == ["sr:9a", "vm:5f3c"]
    assert (record.attempts, record.times) == ({"first": 3}, {"first": [1, 2]})
    assert record.error == {"step": "first", "code": "C", "message": "m"}
    assert (record.cancel, record.resume, record.failures, record.token) == (True, True, 2, "t")
    assert record.lease_until == 1763814123456


def test_a_change_touches_what_the_record_knows_and_nothing_else() -> None:
    after = RECORD.changed(State.QUEUED, {"position": 2, "step": "third", "d:disks": []})
    assert (after.position, after.step, after.data) == (2, "third", {})
    assert RECORD.position == 0


def test_the_request_and_the_token_are_not_shown() -> None:
    record = Record(id="1", name="toy", pool="lab", request={"password": "hunter2"}, token="secret-token")
    assert "hunter2" not in repr(record)
    assert "secret-token" not in repr(record)
    assert "hunter2" not in json.dumps(record.summary())


def test_the_summary_is_plain_data_for_people() -> None:
    assert RECORD.summary() == {
        "operation": "toy",
        "id": "1",
        "pool": "lab",
        "instance": "web01",
        "state": "queued",
        "step": "first",
        "progress": 0.0,
        "waiting_for": None,
        "error": None,
    }
