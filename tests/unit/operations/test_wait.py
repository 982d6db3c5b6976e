"""What ends a wait."""

from __future__ import annotations

from typing import Any

import pytest

from worker.operations.wait import Until, Wait


@pytest.mark.parametrize(
    ("field", "rec", "is_over"),
    [
        ("status", {"status": "pending"}, False),
        ("status", {"status": "cancelling"}, False),
        ("status", {"status": "success"}, True),
        ("status", None, True),
        ("sm_config/vhd-parent", {"sm_config": {"vhd-parent": "pending"}}, False),
        ("sm_config/vhd-parent", {"sm_config": {"vhd-parent": "other"}}, True),
        ("sm_config/vhd-parent", {"sm_config": {}}, True),
        ("sm_config/vhd-parent", {}, True),
        ("status/deeper", {"status": "pending"}, True),
    ],
)
def test_a_wait_is_over_when_the_field_has_another_value(
    field: str, rec: dict[str, Any] | None, *, is_over: bool
) -> None:
    until = Until("task", "OpaqueRef:1", field, ["pending", "cancelling"])
    assert until.is_over(rec) is is_over


def test_a_missing_key_reads_as_nothing() -> None:
    assert not Until("vdi", "OpaqueRef:1", "sm_config/vhd-parent", [""]).is_over({"sm_config": {}})


def test_values_are_compared_as_text() -> None:
    assert not Until("vm", "OpaqueRef:1", "is_a_snapshot", ["True"]).is_over({"is_a_snapshot": True})


def test_a_wait_says_what_the_watcher_must_know() -> None:
    until = Until("task", "OpaqueRef:1", "status", ["pending"])
    wait = Wait("the snapshot", check_every_s=1, deadline_s=2, until=[until])
    assert str(wait) == wait.reason == "the snapshot"
    assert [Until(**one) for one in wait.watch()] == [until]
    assert Wait("time", check_every_s=1, deadline_s=2).watch() == []
