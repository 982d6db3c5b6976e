"""Operations without a pool: their effects are counters in a Redis that no fault touches. A module for `celery -I`."""

from __future__ import annotations

import os
import time
from typing import Any

import redis

from worker.errors import PermanentError, PoolUnreachable
from worker.operations.definition import operation, step
from worker.operations.op import Op
from worker.operations.request import Request, Secret
from worker.operations.wait import Redo, Until, Wait


class ToyRequest(Request):
    """What the toys are told to do."""

    key: str = "toy"
    vm: str | None = None
    on_conflict: str = "wait"
    fail_at: str = ""
    transient_failures: int = 0
    sleep_s: float = 0.0
    wait_s: float = 0.0
    redo: bool = False
    undo_fails: bool = False
    password: Secret | None = None


def ledger() -> redis.Redis:
    """Return where the effects are."""
    return redis.Redis.from_url(os.environ["VMOPS_TEST_EFFECTS"], decode_responses=True)


def _effect(op: Op, name: str) -> None:
    """Do something once, as a step does: find it by its mark, otherwise make it."""
    request = op.request(ToyRequest)
    with ledger() as store:
        store.hincrby(f"calls:{request.key}", name, 1)
        op.guard()
        if store.hsetnx(f"effects:{request.key}", f"{op.id}:{name}", time.time()):
            store.hincrby(f"made:{request.key}", name, 1)
    if request.sleep_s:
        deadline = time.monotonic() + request.sleep_s
        while time.monotonic() < deadline:
            time.sleep(0.02)
            op.check()
            op.progress(1 - (deadline - time.monotonic()) / request.sleep_s)
    if request.fail_at == name:
        raise PermanentError(f"{name} was told to fail")


def _undo(op: Op, name: str) -> None:
    request = op.request(ToyRequest)
    with ledger() as store:
        if request.undo_fails and store.incr(f"undo-fails:{op.id}") < 100 and not store.exists(f"repaired:{op.id}"):
            raise PermanentError("the undo was told to fail")
        store.hdel(f"effects:{request.key}", f"{op.id}:{name}")
        store.rpush(f"undone:{request.key}", name)


def undo_first(op: Op) -> None:
    """Take `first` back."""
    _undo(op, "first")


@step(undo=undo_first)
def first(op: Op) -> None:
    """Hold the VM, then take effect."""
    request = op.request(ToyRequest)
    if request.vm:
        op.hold(f"vm:{request.vm}", queue=request.on_conflict == "wait")
    _effect(op, "first")


def undo_second(op: Op) -> None:
    """Take `second` back."""
    _undo(op, "second")


@step(undo=undo_second, weight=8)
def second(op: Op) -> None:
    """Take effect after failing, or waiting, as often as told."""
    request = op.request(ToyRequest)
    if op.record.failures < request.transient_failures:
        raise PoolUnreachable(f"failure {op.record.failures + 1} of {request.transient_failures}")
    if request.wait_s and op.waited_s < request.wait_s:
        raise Wait("time to pass", check_every_s=request.wait_s, deadline_s=60)
    _effect(op, "second")


@step
def third(op: Op) -> None:
    """Take effect; go back to `second` once when told to."""
    if op.request(ToyRequest).redo and not op.data.get("redone"):
        op.remember(redone=True)
        raise Redo("second", "the work of second has vanished")
    _effect(op, "third")


@step
def fourth(op: Op) -> None:
    """Take effect and say the result."""
    _effect(op, "fourth")
    secret = op.secret("password")
    op.set_result(key=op.request(ToyRequest).key, secret_length=len(secret()) if secret else 0)


toy = operation("toy", ToyRequest, first, second, third, fourth, point_of_no_return=third)


class WatchRequest(Request):
    """A wait for an object of the pool."""

    ref: str = "OpaqueRef:none"
    cls: str = "task"
    check_every_s: float = 600.0


@step
def watched(op: Op) -> None:
    """Wait until the watcher has seen a change; the second run ends it."""
    request = op.request(WatchRequest)
    if not op.data.get("seen"):
        op.remember(seen=True)
        raise Wait(
            "a change in the pool",
            until=[Until(request.cls, request.ref, "status", ["pending"])],
            check_every_s=request.check_every_s,
            deadline_s=3600,
        )


watch = operation("watch_toy", WatchRequest, watched)


def noop(op: Op) -> None:
    """Nothing."""


def _noops() -> list[Any]:
    def named(name: str) -> Any:
        def body(op: Op) -> None:
            """Do nothing."""

        body.__name__ = name
        return step(body)

    return [named(f"noop_{number}") for number in range(4)]


noops = operation("noops", Request, *_noops())
