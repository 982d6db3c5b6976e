"""How many messages a pool keeps."""

from __future__ import annotations

from simulator import messages
from simulator.core.database import Database
from simulator.core.log import Log


def _post(db: Database, count: int) -> list[str]:
    with db:
        return [
            db.create("message", f"OpaqueRef:{number}", {"uuid": str(number), "name": "X"}).ref
            for number in range(count)
        ]


def test_ten_thousand_messages_are_kept_and_the_oldest_go() -> None:
    db = Database(Log(None))
    refs = _post(db, messages.LIMIT + 5)
    assert messages.LIMIT == 10_000
    messages.trim(db)
    assert list(db.tables["message"].rows) == refs[5:]
    messages.trim(db)
    assert len(db.rows("message")) == messages.LIMIT
