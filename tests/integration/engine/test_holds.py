"""One VM, several operations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from uuid import uuid4

import pytest

from tests.support.engine import Toys
from tests.support.worker import eventually
from worker.client import Handle
from worker.errors import OperationFailed
from worker.operations.states import State


@pytest.fixture
def vm() -> str:
    """A VM of the test's own."""
    return uuid4().hex


def holders(toys: Toys, vm: str) -> list[str]:
    return toys.journal.open_holds().get(f"lab:vm:{vm}", [])


def test_operations_of_one_vm_take_their_turns_in_order_of_arrival(running_toys: Toys, vm: str) -> None:
    handles: list[Handle] = []
    for _ in range(4):
        handles.append(running_toys.submit(vm=vm, freeze_at="" if handles else "first"))
        eventually(lambda: holders(running_toys, vm) == [handle.id for handle in handles])
    running_toys.await_frozen(handles[0])
    running_toys.thaw(handles[0])
    for handle in handles:
        handle.wait(30)
    spans = [handle.record().times for handle in handles]
    for before, after in pairwise(spans):
        assert before["fourth"][1] <= after["second"][0], "the next began after the one before had ended"
    assert holders(running_toys, vm) == []


def test_the_reason_names_the_holder(running_toys: Toys, vm: str) -> None:
    holder = running_toys.submit(vm=vm, wait_s=60)
    running_toys.await_state(holder, State.WAITING)
    handle = running_toys.submit(vm=vm)
    running_toys.await_state(handle, State.WAITING)
    assert handle.record().wait == {"reason": f"vm {vm} is in use by operation {holder.id}"}
    holder.cancel()
    handle.wait(20)


def test_on_conflict_fail_is_refused_at_once_and_leaves_the_holder_alone(running_toys: Toys, vm: str) -> None:
    holder = running_toys.submit(vm=vm, wait_s=60)
    running_toys.await_state(holder, State.WAITING)
    refused = running_toys.submit(vm=vm, on_conflict="fail")
    with pytest.raises(OperationFailed, match=rf"Operation {holder.id} has vm {vm}: wait for its end, or submit with"):
        refused.wait(20)
    assert refused.record().error is not None
    assert refused.record().error["code"] == "OperationConflict"  # type: ignore[index]  # asserted above
    assert holders(running_toys, vm) == [holder.id]
    holder.cancel()
    running_toys.await_state(holder, State.CANCELLED)
    alone = running_toys.submit(vm=vm, on_conflict="fail")
    alone.wait(20)


def _succeed(toys: Toys, vm: str) -> Handle:
    return toys.submit(vm=vm, freeze_at="second")


def _fail(toys: Toys, vm: str) -> Handle:
    return toys.submit(vm=vm, freeze_at="second", fail_at="second")


def _be_cancelled(toys: Toys, vm: str) -> Handle:
    return toys.submit(vm=vm, wait_s=60)


@pytest.mark.parametrize("end", [_succeed, _fail, _be_cancelled])
def test_every_kind_of_end_lets_the_next_one_go_on_soon(
    running_toys: Toys, vm: str, end: Callable[[Toys, str], Handle]
) -> None:
    holder = end(running_toys, vm)
    if end is _be_cancelled:
        running_toys.await_state(holder, State.WAITING)
    else:
        running_toys.await_frozen(holder)
    heir = running_toys.submit(vm=vm)
    running_toys.await_state(heir, State.WAITING)
    if end is _be_cancelled:
        holder.cancel()
    else:
        running_toys.thaw(holder)
    heir.wait(60)
    ended_at = holder.record().ended_at
    assert ended_at is not None
    assert heir.record().times["second"][0] - ended_at < 20_000, "by itself it would look after a minute"
    assert holders(running_toys, vm) == []


def test_a_holder_that_the_journal_does_not_know_is_swept_away(running_toys: Toys, vm: str) -> None:
    key = f"{running_toys.journal.prefix}:hold:lab:vm:{vm}"
    ended = running_toys.submit()
    ended.wait(20)
    running_toys.journal.redis.rpush(key, "expired-long-ago", ended.id)
    running_toys.submit(vm=vm).wait(20)
    assert holders(running_toys, vm) == []
