"""The journal's atomic writes, one by one: who may act, who is refused, what is left behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from worker.errors import NotCancellable, OperationNotFound
from worker.operations import results
from worker.operations.journal import Claim, Journal, Link, Move, connect
from worker.operations.record import Direction, Record
from worker.operations.states import State
from worker.settings import Settings


@pytest.fixture
def journal(redis_url: str) -> Iterator[Journal]:
    """An empty journal."""
    made = connect(Settings.model_validate({"journal_url": redis_url, "operation_retention_s": 100, "pools": {}}))
    yield made
    made.redis.close()


def entered(journal: Journal, **fields: Any) -> Record:
    """Return a new operation that waits for its first step."""
    record = Record(
        **{"id": uuid4().hex, "name": "toy", "pool": "lab", "request": {}, "position": 0, "step": "first", **fields}
    )
    assert journal.enter(record)
    return journal.get(record.id)


def link(record: Record, position: int = 0, direction: Direction = Direction.RUN) -> Link:
    return Link(record.id, direction, position, "first")


def claimed(journal: Journal, record: Record, ttl_s: float = 30) -> Record:
    outcome, found = journal.claim(link(record), uuid4().hex, ttl_s)
    assert outcome is Claim.CLAIMED
    assert found is not None
    return found


def scores(journal: Journal, index: str) -> dict[str, float]:
    found: Any = journal.redis.zrange(f"{journal.prefix}:{index}", 0, -1, withscores=True)
    return {raw.decode(): score for raw, score in found}


class TestEnter:
    def test_the_first_one_wins(self, journal: Journal) -> None:
        record = entered(journal, request={"a": 1})
        other = Record(id=record.id, name="toy", pool="lab", request={"a": 2}, position=0)
        assert not journal.enter(other)
        assert not journal.enter(other, announced=True)
        assert journal.get(record.id).request == {"a": 1}

    def test_what_a_client_announced_is_taken_over_once(self, journal: Journal) -> None:
        record = Record(id="1", name="toy", pool="lab", request={"a": 1})
        assert journal.enter(record, announced=True)
        assert not journal.enter(record, announced=True)
        checked = Record(id="1", name="toy", pool="lab", request={"a": 1, "b": 2}, position=0)
        assert journal.enter(checked)
        assert not journal.enter(checked)
        assert journal.get("1").request == {"a": 1, "b": 2}
        assert [line["text"] for _, line in journal.events("1")] == ["submitted", "accepted"]

    def test_it_is_suspected_when_nobody_claims_it(self, journal: Journal) -> None:
        record = entered(journal)
        assert scores(journal, "live")[record.id] > journal.now_ms()


class TestClaim:
    def test_gives_the_record_to_the_one_that_may_act(self, journal: Journal) -> None:
        record = claimed(journal, entered(journal))
        assert (record.state, record.silent_tries, record.attempts) == (State.RUNNING, 1, {"first": 1})
        assert record.token
        assert record.started_at == record.claimed_at

    def test_a_second_delivery_is_refused_while_the_first_acts(self, journal: Journal) -> None:
        record = entered(journal)
        claimed(journal, record)
        assert journal.claim(link(record), "other", 30) == (Claim.BUSY, None)

    def test_a_delivery_whose_answer_was_lost_may_ask_again(self, journal: Journal) -> None:
        record = entered(journal)
        first = journal.claim(link(record), "token", 30)
        assert journal.claim(link(record), "token", 30) == first

    def test_after_the_lease_another_may_act(self, journal: Journal) -> None:
        record = entered(journal)
        claimed(journal, record, ttl_s=0.05)
        time.sleep(0.1)
        assert claimed(journal, record).silent_tries == 2

    @pytest.mark.parametrize(
        ("position", "direction"), [(1, Direction.RUN), (-1, Direction.RUN), (0, Direction.UNDO)], ids=str
    )
    def test_a_link_that_is_not_next_is_stale(self, journal: Journal, position: int, direction: Direction) -> None:
        record = entered(journal)
        assert journal.claim(link(record, position, direction), "token", 30) == (Claim.STALE, None)

    @pytest.mark.parametrize("state", [State.SUCCEEDED, State.STUCK])
    def test_a_link_of_what_has_ended_is_stale(self, journal: Journal, state: State) -> None:
        record = claimed(journal, entered(journal))
        assert journal.move(record, Move(state, "none", {}))
        assert journal.claim(link(record), "token", 30) == (Claim.STALE, None)

    def test_a_link_of_what_is_to_stop_is_told_so(self, journal: Journal) -> None:
        record = entered(journal)
        journal.cancel(record.id)
        assert journal.claim(link(record), "token", 30) == (Claim.CANCEL, None)

    def test_what_the_journal_does_not_know_is_missing(self, journal: Journal) -> None:
        assert journal.claim(Link("no-such-id", Direction.RUN, 0, "first"), "token", 30) == (Claim.MISSING, None)


class TestMove:
    def test_only_the_holder_moves_while_its_lease_lasts(self, journal: Journal) -> None:
        record = entered(journal)
        holder = claimed(journal, record)
        move = Move(State.QUEUED, "live", {"position": 1})
        assert journal.move(record, move) == 0, "without a token"
        assert journal.move(holder, move) > 0
        assert journal.move(holder, move) == 0, "a move ends the lease"
        assert journal.get(record.id).position == 1

    def test_a_late_holder_is_refused_when_another_has_taken_over(self, journal: Journal) -> None:
        record = entered(journal)
        late = claimed(journal, record, ttl_s=0.02)
        time.sleep(0.05)
        claimed(journal, record)
        assert journal.move(late, Move(State.SUCCEEDED, "none", {"result": "wrong"})) == 0
        assert not journal.save(late, {"d:x": 1})
        assert journal.renew(late.id, late.token, 30) == "lost"
        assert journal.get(record.id).data == {}

    def test_a_late_holder_goes_on_when_nobody_else_came(self, journal: Journal) -> None:
        late = claimed(journal, entered(journal), ttl_s=0.02)
        time.sleep(0.05)
        assert journal.renew(late.id, late.token, 30) == "held"
        assert journal.move(late, Move(State.SUCCEEDED, "none", {"result": 1}))

    def test_a_move_that_the_states_do_not_allow_is_refused(self, journal: Journal) -> None:
        record = entered(journal)
        assert journal.move(record, Move(State.SUCCEEDED, "none", {})) == 0
        assert journal.get(record.id).state is State.QUEUED

    def test_an_end_leaves_no_index_and_a_record_that_expires(self, journal: Journal) -> None:
        record = claimed(journal, entered(journal))
        assert journal.hold(record, "vm:1", queue=True) == record.id
        record.holds.append("vm:1")
        keys = (f"{journal.prefix}:op:{record.id}", f"{journal.prefix}:events:{record.id}", results.key(record.id))
        assert [journal.redis.pttl(key) for key in keys] == [-1, -1, -1], "they stay as long as it goes on, or is stuck"
        ended_at = journal.move(record, Move(State.SUCCEEDED, "none", {"result": {"a": 1}}, text="done", ended="first"))
        after = journal.get(record.id)
        assert (after.ended_at, after.token, after.times["first"][1]) == (ended_at, "", ended_at)
        assert scores(journal, "live") == {}
        assert journal.open_holds() == {}
        assert journal.unannounced() == [record.id]
        for key in keys:
            assert 0 < journal.redis.pttl(key) <= 100_000
        journal.announced(record.id)
        assert journal.unannounced() == []

    def test_parking_takes_it_from_the_live_ones_and_waking_takes_it_back(
        self, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        record = claimed(journal, entered(journal))
        watch = [{"cls": "task", "ref": "r", "field": "status", "while_in": []}]
        assert journal.move(record, Move(State.WAITING, "waiting", {}, due_in_s=60, watch=watch))
        assert scores(journal, "live") == {}
        assert journal.due("lab") == []
        later_ms = journal.now_ms() + 60_000
        monkeypatch.setattr(journal, "now_ms", lambda: later_ms)
        assert journal.due("lab") == [record.id]
        wake = Move(State.QUEUED, "live", {}, is_parked=True)
        record = journal.get(record.id)
        assert journal.move_all([(record, wake), (record, wake)])[1] == 0, "it is woken once"
        assert journal.due("lab") == []
        assert journal.redis.hlen(f"{journal.prefix}:watch:lab") == 0

    def test_who_knows_an_earlier_place_of_it_does_not_move_it(self, journal: Journal) -> None:
        """Cancelled in the step with the point of no return, taken for dead, and gone on after all."""
        late = claimed(journal, entered(journal), ttl_s=0.02)
        time.sleep(0.05)
        journal.cancel(late.id)
        seen = replace(journal.get(late.id), token="")
        assert journal.move(late, Move(State.QUEUED, "live", {"position": 1}, drop=["cancel"]))
        turn = Move(State.CANCELLING, "live", {"direction": Direction.UNDO, "position": 0})
        assert journal.move(seen, turn) == 0
        after = journal.get(late.id)
        assert (after.state, after.direction, after.position) == (State.QUEUED, Direction.RUN, 1)

    def test_only_what_it_waits_for_in_the_pool_counts(self, journal: Journal) -> None:
        record = entered(journal)
        for counts in (False, False, True):
            record = claimed(journal, record)
            assert record.waiting_since is None
            journal.move(record, Move(State.WAITING, "waiting", {}, counts=counts))
            record = journal.get(record.id)
        assert record.waiting_since == record.updated_at

    def test_many_moves_are_independent(self, journal: Journal) -> None:
        good, bad = claimed(journal, entered(journal)), entered(journal)
        end = Move(State.SUCCEEDED, "none", {})
        first, second = journal.move_all([(good, end), (bad, end)])
        assert first > 0
        assert second == 0


class TestHold:
    def test_a_taken_resource_is_queued_for_in_order(self, journal: Journal) -> None:
        one, two, three = (claimed(journal, entered(journal)) for _ in range(3))
        assert [journal.hold(record, "vm:1", queue=True) for record in (one, two, three, two)] == [one.id] * 4
        assert journal.open_holds() == {"lab:vm:1": [one.id, two.id, three.id]}

    def test_without_queueing_nothing_is_left_behind(self, journal: Journal) -> None:
        one, two = (claimed(journal, entered(journal)) for _ in range(2))
        journal.hold(one, "vm:1", queue=True)
        assert journal.hold(two, "vm:1", queue=False) == one.id
        assert journal.open_holds() == {"lab:vm:1": [one.id]}
        assert journal.get(two.id).holds == []

    def test_who_has_lost_its_lease_gets_nothing(self, journal: Journal) -> None:
        late = claimed(journal, entered(journal), ttl_s=0.02)
        time.sleep(0.05)
        claimed(journal, late)
        assert journal.hold(late, "vm:1", queue=True) is None
        assert journal.open_holds() == {}

    def test_an_end_wakes_the_next_in_line_and_nobody_else(self, journal: Journal) -> None:
        one, two, three = (claimed(journal, entered(journal)) for _ in range(3))
        for record in (one, two, three):
            journal.hold(record, "vm:1", queue=True)
        for record in (two, three):
            record.holds.append("vm:1")
            journal.move(record, Move(State.WAITING, "waiting", {}, due_in_s=60, hold="vm:1"))
        assert journal.due("lab") == []
        one.holds.append("vm:1")
        journal.move(one, Move(State.SUCCEEDED, "none", {}))
        assert journal.due("lab") == [two.id]

    def test_who_parks_after_its_turn_has_come_is_woken_at_once(self, journal: Journal) -> None:
        one, two = (claimed(journal, entered(journal)) for _ in range(2))
        for record in (one, two):
            journal.hold(record, "vm:1", queue=True)
            record.holds.append("vm:1")
        journal.move(one, Move(State.SUCCEEDED, "none", {}))
        journal.move(two, Move(State.WAITING, "waiting", {}, due_in_s=60, hold="vm:1"))
        assert journal.due("lab") == [two.id]

    def test_what_several_may_have_goes_to_the_first_of_them(self, journal: Journal) -> None:
        records = [claimed(journal, entered(journal)) for _ in range(5)]
        for record in records:
            journal.hold(record, "builds", queue=True, at_most=2)
            record.holds.append("builds")
        one, two, three, four, five = records
        for record in (three, four, five):
            journal.move(record, Move(State.WAITING, "waiting", {}, due_in_s=60, hold="builds"))
        assert journal.due("lab") == []
        journal.move(two, Move(State.SUCCEEDED, "none", {}))
        assert journal.due("lab") == [three.id], "the next in line, though the first goes on"
        again = claimed(journal, three)
        assert journal.hold(again, "builds", queue=True, at_most=2) == three.id
        journal.move(one, Move(State.SUCCEEDED, "none", {}))
        assert journal.due("lab") == [four.id]

    def test_dead_ones_do_not_keep_what_several_may_have(self, journal: Journal) -> None:
        one, two, three = (claimed(journal, entered(journal)) for _ in range(3))
        for record in (one, two, three):
            journal.hold(record, "builds", queue=True, at_most=2)
        journal.redis.delete(f"{journal.prefix}:op:{one.id}", f"{journal.prefix}:op:{two.id}")
        assert journal.hold(three, "builds", queue=True, at_most=2) == three.id
        assert journal.open_holds() == {"lab:builds": [three.id]}


class TestCancel:
    def test_who_acts_hears_of_it_at_its_next_renewal(self, journal: Journal) -> None:
        record = claimed(journal, entered(journal))
        assert journal.renew(record.id, record.token, 30) == "held"
        journal.cancel(record.id)
        assert journal.renew(record.id, record.token, 30) == "cancel"

    def test_who_waits_is_woken(self, journal: Journal) -> None:
        record = claimed(journal, entered(journal))
        journal.move(record, Move(State.WAITING, "waiting", {}, due_in_s=60))
        journal.cancel(record.id)
        assert journal.due("lab") == [record.id]

    def test_past_the_point_of_no_return_it_is_refused(self, journal: Journal) -> None:
        record = entered(journal, position=2, no_return=1)
        with pytest.raises(NotCancellable, match="past its point of no return"):
            journal.cancel(record.id)
        assert not journal.get(record.id).cancel

    def test_what_has_ended_or_never_was_cannot_be_cancelled(self, journal: Journal) -> None:
        record = claimed(journal, entered(journal))
        journal.move(record, Move(State.SUCCEEDED, "none", {}))
        with pytest.raises(NotCancellable, match="has ended"):
            journal.cancel(record.id)
        with pytest.raises(OperationNotFound):
            journal.cancel("no-such-id")


class TestIndexes:
    def test_what_was_sent_and_not_claimed_is_known_by_queue(self, journal: Journal) -> None:
        entered(journal, position=2)
        claimed(journal, entered(journal))
        journal.enter(Record(id="announced", name="toy", pool="paris", request={}), announced=True)
        assert sorted(journal.sent()) == [("toy", -1, "paris"), ("toy", 2, "lab")]

    def test_who_was_just_sent_again_is_not_suspected_at_once(self, journal: Journal) -> None:
        record = entered(journal)
        journal.redis.zadd(f"{journal.prefix}:live", {record.id: 1, "expired": 1})
        assert sorted(journal.suspects()) == sorted([record.id, "expired"])
        journal.suspect_later([record.id, "never-was"])
        journal.suspect_later([])
        journal.forget("expired")
        assert journal.suspects() == []
        assert set(scores(journal, "live")) == {record.id}

    def test_ids_of_expired_operations_are_forgotten_and_others_kept(self, journal: Journal) -> None:
        stuck = entered(journal)
        long_ago = journal.now_ms() - 200_000
        journal.redis.zadd(f"{journal.prefix}:ops", {stuck.id: long_ago, "expired": long_ago})
        journal.expire_index()
        assert set(scores(journal, "ops")) == {stuck.id}
        assert [record.id for record in journal.find()] == [stuck.id]

    def test_a_deployment_sees_only_its_own_prefix(self, journal: Journal, redis_url: str) -> None:
        record = entered(journal)
        other = connect(Settings.model_validate({"journal_url": redis_url, "journal_prefix": "other", "pools": {}}))
        assert list(other.find()) == []
        with pytest.raises(OperationNotFound):
            other.get(record.id)
        other.redis.close()


class TestPlaces:
    def test_only_so_many_are_let_in_until_one_leaves(self, journal: Journal) -> None:
        first, second, third = (claimed(journal, entered(journal)) for _ in range(3))
        assert [journal.enter_place(one, "sr", 2) for one in (first, second, third)] == ["in", "in", "full"]
        journal.leave_place(first, "sr")
        assert journal.enter_place(third, "sr", 2) == "in"

    def test_entering_twice_takes_one_place(self, journal: Journal) -> None:
        first, second = (claimed(journal, entered(journal)) for _ in range(2))
        assert [journal.enter_place(one, "sr", 2) for one in (first, first, second)] == ["in", "in", "in"]

    def test_a_delivery_whose_lease_is_over_is_put_out(self, journal: Journal) -> None:
        dead = claimed(journal, entered(journal), ttl_s=0.05)
        heir = claimed(journal, entered(journal))
        assert journal.enter_place(dead, "sr", 1) == "in"
        time.sleep(0.1)
        assert journal.enter_place(heir, "sr", 1) == "in"

    def test_a_delivery_that_was_taken_over_is_not_let_in(self, journal: Journal) -> None:
        record = entered(journal)
        dead = claimed(journal, record, ttl_s=0.05)
        time.sleep(0.1)
        claimed(journal, record)
        assert journal.enter_place(dead, "sr", 1) == "lost"
