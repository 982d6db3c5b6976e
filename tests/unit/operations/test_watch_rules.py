"""Which token the watcher begins at, what it asks for, and whom the answer releases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worker.operations.wait import Until
from worker.operations.watcher import Watch, released, subscription, token_before


@dataclass
class Event:
    """One event of the pool."""

    ref: str
    operation: str
    rec: dict[str, Any] | None
    cls: str = "task"


def watch(name: str, *refs: str, cls: str = "task") -> Watch:
    return Watch(name, 1, 0, tuple(Until(cls, ref, "status", ("pending",)) for ref in refs))


class TestToken:
    LINES = ("300 C", "200 B", "100 A")

    def test_the_newest_serves_when_nobody_is_new(self) -> None:
        assert token_before(self.LINES, None) == "C"

    def test_a_newcomer_is_served_by_one_that_is_older_than_its_look(self) -> None:
        assert token_before(self.LINES, 301) == "C"
        assert token_before(self.LINES, 300) == "B", "as old is not older"
        assert token_before(self.LINES, 150) == "A"

    def test_when_all_are_too_young_everything_is_asked_for(self) -> None:
        assert token_before(self.LINES, 100) == ""
        assert token_before([], None) == ""


class TestSubscription:
    def test_names_each_object_once(self) -> None:
        assert subscription([watch("1", "b", "a"), watch("2", "a"), watch("3", "v", cls="vdi")]) == [
            "task/a",
            "task/b",
            "vdi/v",
        ]

    def test_asks_for_the_class_when_there_are_many(self) -> None:
        many = [watch(str(number), f"ref{number}") for number in range(101)]
        assert subscription([*many, watch("v", "v", cls="vdi")]) == ["task", "vdi/v"]
        assert len(subscription(many[:100])) == 100


class TestReleased:
    def test_only_whom_a_change_concerns(self) -> None:
        watches = [watch("1", "a"), watch("2", "b"), watch("3", "c")]
        events = [Event("a", "mod", {"status": "success"}), Event("b", "mod", {"status": "pending"})]
        assert released(watches, events, is_complete=False) == ["1"]

    def test_a_deleted_object_releases(self) -> None:
        assert released([watch("1", "a")], [Event("a", "del", None)], is_complete=False) == ["1"]

    def test_an_object_of_another_class_with_the_same_ref_does_not(self) -> None:
        assert released([watch("1", "a")], [Event("a", "del", None, cls="vdi")], is_complete=False) == []

    def test_one_of_several_conditions_is_enough_and_counts_once(self) -> None:
        events = [Event(ref, "mod", {"status": "success"}) for ref in ("a", "b")]
        assert released([watch("1", "a", "b")], events, is_complete=False) == ["1"]

    def test_the_last_of_several_events_counts(self) -> None:
        events = [Event("a", "mod", {"status": "pending"}), Event("a", "del", None)]
        assert released([watch("1", "a")], events, is_complete=False) == ["1"]

    def test_what_a_complete_answer_does_not_show_is_gone(self) -> None:
        watches = [watch("1", "a"), watch("2", "b")]
        events = [Event("b", "add", {"status": "pending"})]
        assert released(watches, events, is_complete=True) == ["1"]
        assert released(watches, events, is_complete=False) == []
