"""poll_unconfirmed_resizes on real moves: the table of operations.md 9.3 row by row, from both pools.

The VMs are of no OpenStack instance: what belongs together is known by the marks alone.
"""

from __future__ import annotations

from typing import Any

from tests.support.two_pools import TwoPools
from tests.support.worker import eventually
from worker.operations.states import State

WINDOW_S = 600
QUIET: tuple[list[str], list[str]] = ([], [])


def poll(rig: TwoPools, pool: str) -> tuple[list[str], list[str]]:
    """One tick; return the operations that it submitted, and what it told."""
    request = {"pool": pool, "resize_confirm_window": WINDOW_S}
    report = rig.client.query("poll_unconfirmed_resizes", request)
    return [one["id"] for one in report["submitted"]], [one["problem"] for one in report["problems"]]


def pass_time(rig: TwoPools) -> None:
    """Let the window go by, in both pools."""
    for pool in (rig.simulator, rig.far):
        pool.clock.advance(WINDOW_S)


def finished(rig: TwoPools, name: str, dest: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Move a VM; return it, and the one that has its place."""
    made = rig.add(name, 2)
    return made, rig.done(rig.finish(rig.done(rig.migrate(made, dest))))


def confirmations(rig: TwoPools, vm_uuid: str) -> list[str]:
    """Return the ids of what was submitted to confirm the resize of a VM."""
    found = rig.client.journal.find()
    return [one.id for one in found if one.name == "confirm_migration" and vm_uuid in str(one.request)]


def test_a_move_to_another_pool_is_confirmed_there_once_when_it_waits_and_nothing_else_is_done_to_it(
    rig: TwoPools,
) -> None:
    made = rig.add("polled", 2)
    moved = rig.done(rig.migrate(made))
    pass_time(rig)
    assert (poll(rig, "lab"), poll(rig, "far")) == (QUIET, QUIET), "moved, and not finished"
    ending = rig.simulator.add_fault(match="VM.remove_from_other_config", nth=2, effect="pause")
    finishing = rig.finish(moved)
    rig.simulator.wait_for_hit(ending)
    pass_time(rig)
    assert (poll(rig, "lab"), poll(rig, "far")) == (QUIET, QUIET), "the VM there says finished, its maker has not ended"
    rig.simulator.clear_faults()
    done = rig.done(finishing)
    there: dict[str, Any] = {"instance": {"vm_uuid": done["vm_uuid"]}, "pool": "far"}

    held = rig.far.add_fault(match="VM.pause", nth=1, effect="pause")
    pausing = rig.client.pause(**there)
    rig.far.wait_for_hit(held)
    submitted, (told,) = poll(rig, "far")
    assert (submitted, "not just waiting" in told) == ([], True)
    destroying = rig.client.destroy(**there)
    eventually(lambda: destroying.record().state == State.WAITING)
    assert poll(rig, "far") == QUIET, "it is being destroyed, for all that is known"
    rig.far.clear_faults()
    rig.done(pausing)
    rig.failed(destroying, "RequestError")
    rig.done(rig.client.unpause(**there))

    assert poll(rig, "lab") == QUIET, "the other pool's"
    (confirming,), problems = poll(rig, "far")
    assert problems == []
    assert (poll(rig, "lab"), poll(rig, "far")) == (QUIET, QUIET)
    assert rig.done(rig.client.handle(confirming))["confirmed"] is True
    assert (poll(rig, "lab"), poll(rig, "far")) == (QUIET, QUIET)
    assert confirmations(rig, done["vm_uuid"]) == [confirming]
    assert confirmations(rig, made["uuid"]) == []
    assert rig.vm("lab", uuid=made["uuid"]) is None


def test_a_resize_within_the_pool_waits_for_the_window_and_is_confirmed_once_at_the_new_vm(rig: TwoPools) -> None:
    made, done = finished(rig, "resized", "lab")
    assert poll(rig, "lab") == QUIET, "too early"
    pass_time(rig)
    (confirming,), problems = poll(rig, "lab")
    assert problems == []
    assert confirmations(rig, done["vm_uuid"]) == [confirming]
    assert rig.done(rig.client.handle(confirming))["confirmed"] is True
    assert confirmations(rig, made["uuid"]) == []
    assert poll(rig, "lab") == QUIET


def test_a_vm_that_is_gone_from_the_pool_it_was_moved_to_is_told_by_the_pool_that_was_left(rig: TwoPools) -> None:
    made, done = finished(rig, "lost", "far")
    with rig.far.session() as call:
        ref = call("VM.get_by_uuid", done["vm_uuid"])
        call("VM.hard_shutdown", ref)
        call("VM.destroy", ref)
    pass_time(rig)
    assert poll(rig, "far") == QUIET
    submitted, (told,) = poll(rig, "lab")
    assert (submitted, "revert" in told) == ([], True)
    rig.done(rig.client.finish_revert_migration(instance={"vm_uuid": made["uuid"]}, pool="lab"))
    rig.assert_as_before(made, "lost")


def test_a_confirmation_that_failed_is_followed_by_another(rig: TwoPools) -> None:
    """A VM that was left and started by somebody cannot be removed."""
    made, done = finished(rig, "started", "lab")
    with rig.simulator.session() as call:
        ref = call("VM.get_by_uuid", made["uuid"])
        for key in ("start", "start_on"):
            call("VM.remove_from_blocked_operations", ref, key)
        call("VM.start", ref, False, False)
    pass_time(rig)
    (first,), _ = poll(rig, "lab")
    rig.failed(rig.client.handle(first), "WrongPowerState")
    with rig.simulator.session() as call:
        call("VM.hard_shutdown", ref)
    assert poll(rig, "lab") == QUIET, "not at once"
    ended = rig.client.journal.now_ms() - 1000 * 60
    rig.client.journal.redis.hset(f"{rig.client.journal.prefix}:op:{first}", "ended_at", str(ended))
    (second,), _ = poll(rig, "lab")
    assert rig.done(rig.client.handle(second))["confirmed"] is True
    assert set(confirmations(rig, done["vm_uuid"])) == {first, second}
