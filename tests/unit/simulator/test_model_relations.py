from __future__ import annotations

from typing import Any

import pytest

from simulator.core.database import Database, Row
from simulator.core.log import Log


@pytest.fixture
def db() -> Database:
    return Database(Log(None))


def add(db: Database, cls: str, name: str, **fields: Any) -> Row:
    with db:
        return db.create(cls, f"OpaqueRef:{name}", {"uuid": f"uuid-{name}"} | fields)


def test_a_relation_of_many_to_many_is_kept_at_both_ends(db: Database) -> None:
    types = [add(db, "VGPU_type", name) for name in ("a", "b", "c")]
    first, second, third = (one.ref for one in types)
    pgpu = add(db, "PGPU", "p", supported_VGPU_types=[first, second])
    assert [one["supported_on_PGPUs"] for one in types] == [[pgpu.ref], [pgpu.ref], []]
    with db:
        db.put(pgpu, supported_VGPU_types=[second, third])
    assert [one["supported_on_PGPUs"] for one in types] == [[], [pgpu.ref], [pgpu.ref]]
    assert pgpu["supported_VGPU_types"] == [second, third]


def test_either_end_of_a_relation_of_many_to_many_can_be_written(db: Database) -> None:
    host, update = add(db, "host", "h"), add(db, "pool_update", "u")
    with db:
        db.put(update, hosts=[host.ref])
    assert host["updates"] == [update.ref]
    with db:
        db.put(host, updates=[])
    assert update["hosts"] == []


def test_an_object_that_goes_leaves_the_other_ends_sets(db: Database) -> None:
    host, update = add(db, "host", "h"), add(db, "pool_update", "u")
    with db:
        db.put(update, hosts=[host.ref])
        db.delete(host)
    assert update["hosts"] == []


def test_hidden_ends_are_kept_but_not_shown(db: Database) -> None:
    session = add(db, "session", "s")
    task = add(db, "task", "t", session=session.ref)
    assert session["tasks"] == [task.ref]
    assert "session" not in task.spec.json(task.values)
    assert "<name>session</name>" not in task.xml()
    with db:
        db.delete(task)
    assert session["tasks"] == []
