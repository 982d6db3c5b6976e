"""What is kept of groups and hosts is right, whoever writes at the same time, comes late, comes again or dies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from redis import Redis

from worker.network.groups import Groups
from worker.network.rules import Compact

HOST, RULES = "host-1:boot-1", "rules:web"
HTTP: list[Compact] = [["i", 4, 6, 80, 80, None]]
SSH: list[Compact] = [["i", 4, 6, 22, 22, None]]


@pytest.fixture
def groups(redis_url: str) -> Groups:
    """Those of a pool that nobody has used."""
    return Groups(Redis.from_url(redis_url), uuid4().hex, "lab")


@pytest.fixture(autouse=True)
def _is_closed(groups: Groups) -> Iterator[None]:
    yield
    groups.redis.close()


def test_a_writer_that_comes_again_neither_counts_twice_nor_overtakes_its_successor(groups: Groups) -> None:
    assert groups.write(RULES, HTTP, "one") == (1, True)
    assert groups.write(RULES, HTTP, "one") == (1, True)
    assert groups.write(RULES, SSH, "two") == (2, True)
    assert groups.write(RULES, HTTP, "one") == (2, False)
    assert groups.read().rules == {"web": SSH}


def test_a_version_that_is_not_newer_changes_nothing(groups: Groups) -> None:
    assert groups.write(RULES, HTTP, "one", 7) == (7, True)
    assert groups.write(RULES, SSH, "two", 7) == (7, False)
    assert groups.write(RULES, SSH, "two", 8) == (8, True)
    assert groups.read().rules == {"web": SSH}


def test_after_a_wipe_generations_are_newer_than_all_before(groups: Groups) -> None:
    before = [groups.next_generation() for _ in range(5)]
    assert sorted(set(before)) == before
    time.sleep(0.01)
    groups.redis.delete(*groups.redis.keys(f"{groups.prefix}:*"))
    assert groups.next_generation() > before[-1]


def test_what_a_host_was_told_is_not_known_until_it_has_said_that_it_has_it(groups: Groups) -> None:
    assert groups.had(HOST) is None
    groups.note(HOST, 1, {RULES: "old", "vif:a": "a"})
    groups.begin(HOST, 2, [RULES, "vif:a"])
    assert groups.had(HOST) == {RULES: "", "vif:a": ""}  # what its caller's death leaves
    groups.note(HOST, 2, {RULES: "new"}, ["vif:a"])
    assert groups.had(HOST) == {RULES: "new"}


def test_a_look_that_comes_late_is_not_believed(groups: Groups) -> None:
    groups.begin(HOST, 2, [RULES])
    groups.note(HOST, 1, {RULES: "refused by the host"})
    assert groups.had(HOST) == {RULES: ""}
    groups.note(HOST, 2, {RULES: "new"})
    groups.note(HOST, 1, {}, [RULES])
    assert groups.had(HOST) == {RULES: "new"}


def test_what_a_host_says_counts_but_for_what_is_on_its_way_and_what_came_later(groups: Groups) -> None:
    groups.note(HOST, 1, {RULES: "lost", "vif:a": "lost"})
    groups.begin(HOST, 2, ["vif:b"])
    groups.note(HOST, 4, {"vif:c": "later"})
    groups.note_all(HOST, 3, {RULES: "said", "vif:b": "said", "vif:c": "said"}, 60)
    assert groups.had(HOST) == {RULES: "said", "vif:b": "", "vif:c": "later"}
    assert groups.is_verified(HOST)
    groups.note_all(HOST, 5, {}, 60)
    assert groups.had(HOST) == {"vif:b": ""}


def test_a_host_that_has_nothing_is_told_from_one_that_nobody_knows(groups: Groups) -> None:
    groups.note_all(HOST, 1, {}, 60)
    assert groups.had(HOST) == {}
    assert groups.had("host-1:boot-2") is None


def test_what_a_look_may_have_missed_is_a_change(groups: Groups) -> None:
    own = groups.next_generation()
    groups.begin(HOST, own, [RULES])
    assert groups.changes() == 0, "who looks next sees that it is not known"
    groups.next_generation()
    groups.begin(HOST, own, [RULES])
    assert groups.changes() == 1, "somebody has looked between"
    groups.expect("vm-1", [], 60)
    groups.expect_no_more("vm-1")
    assert (groups.changes(), groups.expected()) == (2, {})
